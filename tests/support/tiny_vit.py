"""A ViT that is calibrated in a tenth of a second, random images for it, and what is asked of both."""

import hashlib
from typing import Any

import torch
from asked import asked

from erq_export.calibrate.loop import calibrate
from erq_export.contract.bundle import Bundle
from erq_export.contract.spec import ModelSpec, Quantization
from erq_export.data.calibration_set import CalibrationSet
from erq_export.models.loading import Loaded, load

TINY = "vit_tiny_patch16_224"
TINY_ARGS: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,  # 4 × 4 patches, 16 tokens and the class token
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}
TINY_RIDGE = 100.0  # the paper's 1e4 stands beside 6304 rows; 12 images make 204
N_IMAGES = 12  # more than one chunk of the loop, and not a multiple of it
TINY_LAYERS = (
    "patch_embed.proj",
    *(f"blocks.{i}.{part}" for i in range(2) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "head",
)


def tiny_vit(*, seed: int = 0, **model_args: Any) -> Loaded:
    """The tiny model with random weights; LayerNorms included, which timm starts at γ = 1, β = 0."""
    loaded = load(ModelSpec(name=TINY, pretrained=False, model_args=TINY_ARGS | model_args), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.copy_(torch.exp(0.5 * torch.randn(module.weight.shape, generator=generator)))
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
    return loaded


def random_images(n: int = N_IMAGES, *, seed: int = 0, size: int = 16) -> CalibrationSet:
    """n images of white noise, already preprocessed."""
    pixels = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    names = tuple(f"noise/{i}" for i in range(n))
    return CalibrationSet(pixels=pixels, names=names, sha256=hashlib.sha256(pixels.numpy().tobytes()).hexdigest())


def tiny_spec(
    bits: str = "w4a4", targets: tuple[str, ...] = ("onnx",), *, method: str = "erq", **changes: Any
) -> Quantization:
    """`changes` are options of the method, `attention` and `pack`. Every row counts once and nothing is rotated, so that sums
    can be made again from the float model."""
    defaults: dict[str, Any] = {"ridge": TINY_RIDGE, "class_weight": 1.0, "rotate": "none"} if method == "erq" else {}
    return asked(bits, targets, method=method, **defaults | changes)


def calibrated_bundle(loaded: Loaded, data: CalibrationSet, spec: Quantization) -> Bundle:
    """Calibrate on the CPU without a word; `loaded.model` becomes the quantized model."""
    return calibrate(loaded, data, spec, device=torch.device("cpu"), progress=lambda *_: None)
