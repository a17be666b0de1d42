"""A mask of a box becomes a mask of the image.

Pixel i covers i … i + 1, boxes are not rounded: a pixel is inside where the mask, read bilinearly at the pixel's middle, is ½ or
more. Outside of the 28 × 28 cells the mask is 0.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

INSIDE = 0.5


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Of n masks (n, m, m) in boxes (n, 4): (H, W) bool each, in turn; an image of n masks would not fit into memory."""
    for mask, box in zip(masks, boxes, strict=True):
        yield _one(mask, box, size)


def _one(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    out = torch.zeros(height, width, dtype=torch.bool, device=mask.device)
    x1, y1, x2, y2 = box.tolist()
    # a mask fades over half a cell beyond its box, but never to ½ or more there
    left, right = max(0, int(x1) - 1), min(width, int(x2) + 2)
    top, bottom = max(0, int(y1) - 1), min(height, int(y2) + 2)
    if left >= right or top >= bottom or x2 <= x1 or y2 <= y1:
        return out
    x = (torch.arange(left, right, device=mask.device, dtype=mask.dtype) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(top, bottom, device=mask.device, dtype=mask.dtype) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), -1)[None]  # (1, h, w, 2)
    out[top:bottom, left:right] = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= INSIDE
    return out
