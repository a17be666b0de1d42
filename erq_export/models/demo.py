"""The bundled `demo` model: its architecture, preprocessing and weights. It reads handwritten digits (`data.digits`)."""

from pathlib import Path
from typing import Any

DEMO_ARCHITECTURE = "vit_tiny_patch16_224"


DEMO_MODEL_ARGS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,  # 8 × 8 patches, 64 tokens and the class token
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 3,
    "num_classes": 10,
}


DEMO_PREPROCESS: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
}


DEMO_WEIGHTS = Path(__file__).parent / "demo.safetensors"
