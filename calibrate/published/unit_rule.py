"""The rounding rule of ERQ's extended version: a gradient step of length one, snapped back to the grid.

Letters:  W (n, h) weights of the columns being quantized;  d (n, h) = rounded − W;  M (h, h) second moment of their inputs
          g = 2 d M (n, h) the gradient of the loss d M dᵀ
For comparison with published figures. Its step has weight units although a gradient has not: how many weights it flips
depends on the scale of the inputs, and small inputs make it idle (docs/method.md, "Unit rule").
"""

import torch
from torch import Tensor

from erq_export.contract.formats.format import Format


def unit(W: Tensor, grid: Format, M: Tensor, limit: int) -> Tensor:
    """At most `limit` flips a row: returns rounded W (n, h).

        j = argmax |g_j| over g_j d_j > 0;     v = d_j − g_j;     d_j ← the neighbour nearer to v, the upper on ties

    kept where the loss has not risen. The published code goes on with every row until all fail at once, but a row whose
    step is refused, or leads back to where it is, meets the same step again: here it stops, with the same result.
    """
    down, up, is_up = grid.neighbours(W)
    d = torch.where(is_up, up, down) - W
    other = torch.where(is_up, down, up) - W
    g = 2 * d @ M
    rows = torch.arange(len(W), device=W.device)  # still descending
    for _ in range(limit):
        value, j = torch.where(g[rows] * d[rows] > 0, g[rows].abs(), 0).max(1)
        here, there, slope = d[rows, j], other[rows, j], g[rows, j]
        v, lower, upper = here - slope, torch.minimum(here, there), torch.maximum(here, there)
        snapped = torch.where((upper - v).abs() <= (v - lower).abs(), upper, lower)
        step = snapped - here
        kept = (value > 0) & (step != 0) & (step * slope + step.square() * M.diagonal()[j] <= 0)
        rows, j, here, there, step = (t[kept] for t in (rows, j, here, there, step))
        if len(rows) == 0:
            break
        d[rows, j], other[rows, j] = there, here
        g[rows] += 2 * step[:, None] * M[j]
        is_up[rows, j] ^= True
    return torch.where(is_up, up, down)
