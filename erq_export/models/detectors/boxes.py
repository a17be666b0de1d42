"""How predicted offsets move and stretch boxes.

Letters:  N boxes (x₁, y₁, x₂, y₂) of centre c and size (w, h);  d = (dx, dy, dw, dh) predicted;  σ the offsets' scales
          c' = c + σ d_xy (w, h)       (w', h') = exp(σ d_wh) (w, h)
"""

import math

import torch
from torch import Tensor

LARGEST_STRETCH = math.log(1000 / 16)  # of σ d_wh, either way: from a box of the coarsest level to one of the finest
Scales = tuple[float, float, float, float]


def decode(deltas: Tensor, boxes: Tensor, scales: Scales) -> Tensor:
    """(N, …, 4) predictions for N boxes (N, 4) → (N, …, 4) boxes"""
    d = deltas * torch.tensor(scales, dtype=deltas.dtype, device=deltas.device)
    low, high = boxes[:, :2], boxes[:, 2:]
    size = (high - low).reshape(-1, *[1] * (deltas.dim() - 2), 2)
    centre = ((low + high) / 2).reshape(size.shape) + d[..., :2] * size
    half = d[..., 2:].clamp(-LARGEST_STRETCH, LARGEST_STRETCH).exp() * size / 2
    return torch.cat((centre - half, centre + half), -1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, 4) boxes within an image of this height and width"""
    height, width = size
    return torch.stack(
        (
            boxes[..., 0].clamp(0, width),
            boxes[..., 1].clamp(0, height),
            boxes[..., 2].clamp(0, width),
            boxes[..., 3].clamp(0, height),
        ),
        -1,
    )
