"""Swin's blocks on maps that are no whole number of windows: padded first, then shifted.

Letters:  B images of H × W tokens with C channels, padded to H' × W';  w windows of N tokens an image;  h heads

timm shifts first and pads then, with the mask of the other order. The detectors were trained by code that pads first:
padding lies right and below, where the shift moves it between the last windows and the first ones.
"""

from typing import Any

import timm.models.swin_transformer as timm_swin
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from erq_export.models.swin import WindowAttention

FORBIDDEN = -100.0  # added to the score of two tokens that only the shift made neighbours


class WindowPad(nn.Module):
    """Zeros right and below, up to whole windows; then `shift` (C,), which a body that is prepared for calibration has.

    Folding a grid into the LayerNorm in front adds v to what leaves it, and takes W v from the bias behind. Attention reads
    padding like any other token, so it must get v, too: the LayerNorm takes the rest of the fold, and v is added here.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.shift: Tensor | None
        self.register_buffer("shift", None)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))  # (B, H', W', C)
        return x if self.shift is None else x + self.shift


class Block(nn.Module):
    """A timm block's modules under their own names, for maps of one size, which `set_map` changes."""

    def __init__(self, block: timm_swin.SwinTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn: nn.Module = block.attn
        self.window: int = block.window_size[0]
        self.shift: int = block.shift_size[0]
        self.pad = WindowPad(self.window)
        self.mask: Tensor | None
        self.register_buffer("mask", None, persistent=False)

    def set_map(self, masks: dict[int, Tensor | None]) -> None:
        """Take the mask of this block's shift: (w, N, N), or None where nothing is shifted."""
        mask = masks[self.shift]
        if isinstance(self.attn, CanvasAttention):
            self.attn.set_mask(mask)
        else:
            self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)"""
        x = x + self._attended(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _attended(self, x: Tensor) -> Tensor:
        height, width, channels = x.shape[1:]
        x = self.pad(x)
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        sides = (self.window, self.window)
        windows = self.attn(window_partition(x, sides).flatten(1, 2), mask=self.mask)  # (B·w, N, C)
        x = window_reverse(windows.reshape(-1, *sides, channels), sides, x.shape[1], x.shape[2])
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width].contiguous()


class CanvasAttention(WindowAttention):
    """The classifiers' attention, whose constant of bias and mask is made anew for every canvas, and is not kept in files."""

    def __init__(self, attn: timm_swin.WindowAttention) -> None:
        super().__init__(attn, None)
        self.position: Tensor  # (1, h, N, N)
        self.register_buffer("position", self.bias.clone())
        self.register_buffer("bias", self.bias, persistent=False)

    def set_mask(self, mask: Tensor | None) -> None:
        self.bias = self.position if mask is None else (self.position + mask[:, None]).flatten(0, 1)[None]


def shift_masks(height: int, width: int, *, window: int, like: Tensor) -> dict[int, Tensor | None]:
    """What is added to the scores of a map's windows, by shift: nothing for 0, and for half a window a mask (w, N, N) that
    keeps apart tokens that the shift brought together from opposite edges of the padded map."""
    shift, sides = window // 2, (height + -height % window, width + -width % window)
    rows, columns = (_bands(side, window, shift, like.device) for side in sides)
    regions = (3 * rows[:, None] + columns)[None, :, :, None]  # (1, H', W', 1)
    tokens = window_partition(regions, (window, window)).reshape(-1, window * window)  # (w, N)
    apart = tokens[:, :, None] != tokens[:, None]
    return {0: None, shift: apart.to(like.dtype) * FORBIDDEN}


def _bands(side: int, window: int, shift: int, device: Any) -> Tensor:
    """0 for whole windows, then 1, and 2 for what came from the other edge: (side,)"""
    at = torch.arange(side, device=device)
    return (at >= side - window).long() + (at >= side - shift).long()
