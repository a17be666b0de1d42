"""Rounding refinement: which weights of a row should round up and which down, given what the rounding costs at the output.

Letters:  W (n, h) weights of the columns being quantized;  d (n, h) = rounded − W;  M (h, h) second moment of their inputs
          c (n, h) the change of d when that entry takes its other neighbour;  g = d M (n, h)
The loss of a row is d M dᵀ = E[(d x̂)²]. Flipping entry j changes it by exactly 2 c_j g_j + c_j² M_jj (erq.md section 9).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from erq_export.affine import Grid, dequantize, quantize

Refinement = Callable[[Tensor, Grid, Tensor, int], Tensor]


def neighbours(W: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """(down, up, starts_up): the grid points around each weight (n, h), and whether the nearest one is the upper.

    Beyond the grid both neighbours are its end, and the entry cannot flip.
    """
    down, up = (dequantize(quantize(W, grid, rounding), grid) for rounding in (torch.floor, torch.ceil))
    nearest = dequantize(quantize(W, grid), grid)
    return down, up, nearest == up


def flip(W: Tensor, grid: Grid, M: Tensor, limit: int) -> Tensor:
    """Each row flips the entry of best exact gain until none helps, at most `limit` times: returns rounded W (n, h).

    Goes beyond the paper (erq.md P3): the gain is exact and decides alone. The loss never rises.
    """
    down, up, is_up = neighbours(W, grid)
    d = torch.where(is_up, up, down) - W
    c = torch.where(is_up, down, up) - W - d
    g, diagonal = d @ M, M.diagonal()
    rows = torch.arange(len(W), device=W.device)
    for _ in range(limit):
        gain = 2 * c[rows] * g[rows] + c[rows].square() * diagonal
        best, j = gain.min(1)
        rows, j = rows[best < 0], j[best < 0]
        if not len(rows):
            break
        step = c[rows, j]
        d[rows, j] += step
        g[rows] += step[:, None] * M[j]
        c[rows, j] = -step
    return dequantize(quantize(W + d, grid), grid)


def paper(W: Tensor, grid: Grid, M: Tensor, limit: int) -> Tensor:
    """The published rule with k = 1: flip where the gradient 2 d M is largest among entries of the same sign as their
    error; stop a row at its first flip that does not help. Returns rounded W (n, h). Source: erq.md section 9.2."""
    down, up, is_up = neighbours(W, grid)
    d = torch.where(is_up, up, down) - W
    c = torch.where(is_up, down, up) - W - d
    g, diagonal = d @ M, M.diagonal()
    rows = torch.arange(len(W), device=W.device)
    for _ in range(limit):
        score = torch.where((g[rows] * d[rows] > 0) & (c[rows] != 0), g[rows].abs(), 0)
        best, j = score.max(1)
        step = c[rows, j]
        helps = (best > 0) & (2 * step * g[rows, j] + step.square() * diagonal[j] <= 0)
        rows, j, step = rows[helps], j[helps], step[helps]
        if not len(rows):
            break
        d[rows, j] += step
        g[rows] += step[:, None] * M[j]
        c[rows, j] = -step
    return dequantize(quantize(W + d, grid), grid)


def nearest(W: Tensor, grid: Grid, M: Tensor, limit: int) -> Tensor:  # noqa: ARG001  the interface of a refinement
    """No refinement: every weight to its nearest grid point."""
    return dequantize(quantize(W, grid), grid)


REFINEMENTS: dict[str, Refinement] = {"flip": flip, "paper": paper, "none": nearest}
