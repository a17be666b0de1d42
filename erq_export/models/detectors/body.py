"""The body of a detector: an image becomes a pyramid of maps, with a score and an offset for every anchor on them.

Letters:  B images of H × W pixels, both multiples of 32;  C channels of the pyramid;  A anchors at every place of a map
"""

from collections import OrderedDict
from typing import Any, NamedTuple, cast

import timm.models.swin_transformer as timm_swin
import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from erq_export.models.detectors.anchors import RATIOS
from erq_export.models.detectors.architecture import Architecture
from erq_export.models.detectors.windows import Block, CanvasAttention, shift_masks
from erq_export.models.family import PatchTokens

PATCH = 4  # pixels a side of Swin's tokens


class Pyramid(NamedTuple):
    """What the body makes of B images, finest level first; every level has half the sides of the one before."""

    maps: tuple[Tensor, ...]  # (B, C, H/4, W/4) … (B, C, H/64, W/64)
    objectness: tuple[Tensor, ...]  # (B, A, h, w) logits of each map
    deltas: tuple[Tensor, ...]  # (B, 4 A, h, w)


class Body(nn.Module):
    """Swin with a LayerNorm behind each stage, feature pyramid and region proposal head, for one canvas at a time.

    Windows are always 7 × 7 and always shifted, however small a map is, as where the published weights were trained.
    """

    def __init__(self, architecture: Architecture, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.window = architecture.window
        swin = timm_swin.SwinTransformer(
            patch_size=PATCH,
            num_classes=0,
            embed_dim=architecture.dim,
            depths=architecture.depths,
            num_heads=architecture.heads,
            window_size=architecture.window,
            always_partition=True,
            strict_img_size=False,  # no mask is made for timm's own order of padding and shift
            drop_path_rate=0,
        )
        self.patch_embed: nn.Module = swin.patch_embed
        self.layers = nn.ModuleList(swin.layers)
        for layer in cast(list[Any], swin.layers):
            layer.blocks = nn.Sequential(*(Block(block) for block in layer.blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in architecture.widths)
        channels = architecture.channels
        self.fpn = FeaturePyramidNetwork(list(architecture.widths), channels, extra_blocks=LastLevelMaxPool())
        self.rpn = RPNHead(channels, len(RATIOS))
        self.set_canvas(canvas)
        self.register_load_state_dict_post_hook(_remade)  # type: ignore[no-untyped-call]

    def set_canvas(self, canvas: tuple[int, int]) -> None:
        """Make the masks for images of this height and width. Blocks of a stage share them."""
        self.canvas = canvas
        height, width = (side // PATCH for side in canvas)
        like = next(self.parameters())
        for layer in cast(list[Any], self.layers):
            if not isinstance(layer.downsample, nn.Identity):
                height, width = (height + 1) // 2, (width + 1) // 2
            masks = shift_masks(height, width, window=self.window, like=like)
            for block in layer.blocks:
                block.set_map(masks)

    def take(self, image: Tensor) -> None:
        """Make the masks for images (B, 3, H, W) like this one, unless they are there."""
        height, width = image.shape[2:]
        if (height, width) != tuple(self.canvas):
            self.set_canvas((height, width))

    def forward(self, image: Tensor) -> Pyramid:
        """(B, 3, H, W), normalised and padded with zeros to the canvas"""
        if tuple(image.shape[2:]) != tuple(self.canvas):
            raise ValueError(f"the body is set to {self.canvas}, the image has {tuple(image.shape[2:])}: set_canvas")
        features: OrderedDict[str, Tensor] = OrderedDict()
        x = self.patch_embed(image)  # (B, H/4, W/4, dim)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = layer(x)
            features[str(i)] = norm(x).permute(0, 3, 1, 2).contiguous()
        maps = tuple(self.fpn(features).values())
        objectness, deltas = self.rpn(list(maps))
        return Pyramid(maps, tuple(objectness), tuple(deltas))


def _remade(body: nn.Module, _keys: object) -> None:
    """Constants of bias and mask are not in files: those of other weights were made."""
    cast(Body, body).set_canvas(cast(Body, body).canvas)


def prepare(body: Body) -> Body:
    """Bring the body into the form that is calibrated and exported, in place, function unchanged: the patch embedding a
    Linear, attention of separate operands with one constant for bias and mask."""
    embed: Any = body.patch_embed
    body.patch_embed = PatchTokens(embed.proj, embed.norm, flatten=False)
    for layer in cast(list[Any], body.layers):
        for block in layer.blocks:
            block.attn, block.mask = CanvasAttention(block.attn), None
            block.pad.shift = torch.zeros_like(block.norm1.bias)
    body.set_canvas(body.canvas)
    return body.eval().requires_grad_(False)
