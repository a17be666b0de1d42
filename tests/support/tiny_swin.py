"""A Swin of four blocks, two of them shifted, that is calibrated in a second."""

from typing import Any

import torch

from erq_export.contract.spec import ModelSpec
from erq_export.models.loading import Loaded, load

TINY_SWIN = "swin_tiny_patch4_window7_224"
SIZE = 32
SWIN_ARGS: dict[str, Any] = {
    "img_size": SIZE,
    "patch_size": 2,  # 16 × 16 tokens, then 8 × 8: 16 windows, then 4
    "window_size": 4,
    "embed_dim": 32,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "num_classes": 5,
}
SWIN_LAYERS = (
    "patch_embed.proj",
    *(f"layers.0.blocks.{j}.{part}" for j in range(2) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "layers.1.downsample.reduction",
    *(f"layers.1.blocks.{j}.{part}" for j in range(2) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "head.fc",
)


def tiny_swin(*, seed: int = 0, **model_args: Any) -> Loaded:
    """The tiny model with random weights; LayerNorms included, which timm starts at γ = 1, β = 0."""
    loaded = load(ModelSpec(name=TINY_SWIN, pretrained=False, model_args=SWIN_ARGS | model_args), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.copy_(torch.exp(0.5 * torch.randn(module.weight.shape, generator=generator)))
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
    return loaded
