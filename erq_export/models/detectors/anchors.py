"""Where the pyramid's anchors lie, in pixels of the canvas.

At place (i, j) of a map of stride s: centre (s j, s i), area (8 s)², height / width one of three ratios. Neither rounded nor
moved to the middle of the place, and the stride is that of the level, not canvas // map: 800 rows make 13 of the last
map's, whose stride is 64, not 61.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RATIOS = (0.5, 1.0, 2.0)  # height / width
SCALE = 8  # side of a square anchor in strides
STRIDES = (4, 8, 16, 32, 64)  # pixels between places, by level


def anchors(sizes: Sequence[tuple[int, int]], like: Tensor) -> list[Tensor]:
    """(h · w · 3, 4) boxes of each level's h × w map, in the order of rows, columns, ratios."""
    return [_of_level(size, stride, like) for size, stride in zip(sizes, STRIDES, strict=True)]


def _of_level(size: tuple[int, int], stride: int, like: Tensor) -> Tensor:
    root = torch.tensor(RATIOS, dtype=like.dtype, device=like.device).sqrt()
    width, height = stride * SCALE / root, stride * SCALE * root
    around = torch.stack((-width, -height, width, height), 1) / 2  # (3, 4)
    rows, columns = (torch.arange(n, dtype=like.dtype, device=like.device) * stride for n in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack((x, y, x, y), -1)  # (h, w, 4)
    return (centres[:, :, None] + around).reshape(-1, 4)
