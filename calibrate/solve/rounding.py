"""Rounding refinement: which weights of a row should round up and which down, given what the rounding costs at the output.

Letters:  W (n, h) weights of the columns being quantized;  d (n, h) = rounded − W;  M (h, h) second moment of their inputs
          c (n, h) the change of d when that entry takes its other neighbour;  g = d M (n, h);
          q (n, h) = c² M_jj
The loss of a row is d M dᵀ = E[(d x̂)²]. Flipping entry j changes it by exactly 2 c_j g_j + c_j² M_jj
(docs/method.md, "Rounding refinement").
"""

from collections.abc import Callable

import torch
from torch import Tensor

from erq_export.contract.formats.format import Format

from .rows import kernels

Refinement = Callable[[Tensor, Format, Tensor, int], Tensor]
Choice = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # c, g, q, d → which rows flip, which entry


def flip(W: Tensor, grid: Format, M: Tensor, limit: int) -> Tensor:
    """Each row flips the entry of best exact gain until none helps, at most `limit` times: returns rounded W (n, h).

    Goes beyond the paper (docs/method.md, "Rounding refinement"): the gain is exact and decides alone. The loss never
    rises.
    """

    down, up, is_up = grid.neighbours(W)
    d, c, g = _start(W, down, up, is_up, M)
    is_up = is_up.contiguous()  # what is changed below must not be a copy
    if compiled := kernels(W):
        compiled.flip_rows(*(t.contiguous().numpy() for t in (c, g, M.diagonal(), M, is_up)), limit)
    else:
        _descend(d, c, g, is_up, M=M, limit=limit, choose=_best_gain)
    return torch.where(is_up, up, down)


def _best_gain(c: Tensor, g: Tensor, q: Tensor, _d: Tensor) -> tuple[Tensor, Tensor]:
    gain, j = torch.addcmul(q, c, g, value=2).min(1)
    return gain < 0, j


def paper(W: Tensor, grid: Format, M: Tensor, limit: int) -> Tensor:
    """The published rule with k = 1: flip where the gradient 2 d M is largest among entries of the same sign as their
    error; stop a row at its first flip that does not help. Returns rounded W (n, h). Source:
    docs/method.md, "Published rounding rule"."""

    down, up, is_up = grid.neighbours(W)
    d, c, g = _start(W, down, up, is_up, M)
    _descend(d, c, g, is_up, M=M, limit=limit, choose=_steepest)
    return torch.where(is_up, up, down)


def _steepest(c: Tensor, g: Tensor, q: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    score, j = torch.where((g * d > 0) & (c != 0), g.abs(), 0).max(1)
    c, g, q = (t.gather(1, j[:, None])[:, 0] for t in (c, g, q))
    return (score > 0) & (2 * c * g + q <= 0), j


def _start(W: Tensor, down: Tensor, up: Tensor, is_up: Tensor, M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d, c and g, all (n, h), before the first flip."""
    d = torch.where(is_up, up, down).sub_(W)
    c = torch.where(is_up, down, up).sub_(W).sub_(d)
    return d, c, d @ M


def _descend(d: Tensor, c: Tensor, g: Tensor, is_up: Tensor, *, M: Tensor, limit: int, choose: Choice) -> None:
    """Flip one entry per row and sweep, with the gradient kept current by a rank-one update; a row stops at its first
    sweep without a flip. `is_up` (n, h) records the flips, so the result is exactly one neighbour or the other.

    Stopped rows stay where they are, and leave the arrays once a quarter has stopped: leaving costs as much as a sweep.
    """
    q = c.square() * M.diagonal()
    rows = torch.arange(len(d), device=d.device)  # of is_up, in the arrays
    for _ in range(limit):
        helps, j = choose(c, g, q, d)
        n_helped = int(helps.sum())
        if n_helped == 0:
            break
        if 4 * n_helped < 3 * len(rows):
            kept = helps.nonzero()[:, 0]
            helps, rows, j, c, g, q, d = (t.index_select(0, kept) for t in (helps, rows, j, c, g, q, d))
        at = torch.arange(len(rows), device=d.device), j
        step = torch.where(helps, c[at], 0)
        d[at] += step
        c[at] -= 2 * step  # exactly −c
        g.addcmul_(step[:, None], M.index_select(0, j))
        is_up[rows, j] ^= helps


def nearest(W: Tensor, grid: Format, M: Tensor, limit: int) -> Tensor:  # noqa: ARG001  the interface of a refinement
    """No refinement: every weight to its nearest grid point."""
    return grid.dequantize(grid.quantize(W))


REFINEMENTS: dict[str, Refinement] = {"flip": flip, "paper": paper, "none": nearest}


def enumerated(w: Tensor, down: Tensor, up: Tensor, M: Tensor) -> tuple[bool, ...]:
    """The best of all 2ᵇ roundings of one row (b,), in float64: True is up. For small b, to hold the rules against."""
    choices = torch.cartesian_prod(*[torch.tensor([False, True])] * len(w))  # (2ᵇ, b)
    d = torch.where(choices, up, down) - w
    return tuple(choices[int(((d @ M) * d).sum(1).argmin())].tolist())
