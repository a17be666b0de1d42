"""What a head sees of a box: the pyramid's map that fits the box's size, sampled on a square grid.

Aligned: pixel i of a map covers i … i + 1, so its value stands at i + ½. Samples are as dense as the box is large on its map
(RoIAlign's adaptive ratio). Both differ from torchvision's own detectors, and change the features by half their size and more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from erq_export.models.detectors.anchors import STRIDES

FINEST = (
    56  # pixels: boxes of up to twice this side (√area) are read from the finest map, of up to four times from the next
)
EDGE = 1e-6  # so that a box of exactly that side is read from the coarser map
POOLED = 4  # levels; the last map only proposes


def levels_of(boxes: Tensor) -> Tensor:
    """(n,) ⌊log₂(√area / 56 + 10⁻⁶)⌋, between 0 and 3"""
    return between_levels(boxes).floor().clamp(0, POOLED - 1).long()


def between_levels(boxes: Tensor) -> Tensor:
    """(n,) the same before it is rounded down and bounded"""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return torch.log2(side / FINEST + EDGE)


def pooled(maps: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
    """(n, C, side, side) of n boxes (n, 4), from maps (1, C, h, w) of one image"""
    return pooled_from(maps, levels_of(boxes), boxes, side)


def pooled_from(maps: Sequence[Tensor], levels: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The same, each box from the map of a given level (n,)"""
    out = maps[0].new_zeros(len(boxes), maps[0].shape[1], side, side)
    for level, stride in enumerate(STRIDES[:POOLED]):
        here = (levels == level).nonzero()[:, 0]
        out[here] = roi_align(maps[level], [boxes[here]], side, 1 / stride, sampling_ratio=0, aligned=True)
    return out
