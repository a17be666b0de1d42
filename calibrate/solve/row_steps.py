"""Refinement after the last half, over the whole row: single steps on the grid, each the best one left.

Goes beyond the paper. Wqer decides half of the columns without knowing how the other half will be rounded; when all are
rounded, some decisions are worth taking back, and the bias can absorb what a step leaves.

Letters:  W (n, K) what the row should be (after Aqer), the bias its last column;  q (n, k) integers, s (n, 1) their scale
          d = s q − W (n, k);  G = [[A, v], [vᵀ, ν]] (K, K) summed second moment of x̃ = [x̂; 1];  λ ridge of the bias
"""

import torch
from torch import Tensor

from erq_export.contract.formats.affine import Grid

from .rows import by_rows, kernels


def without_bias(G: Tensor, ridge_sum: float) -> tuple[Tensor, Tensor]:
    """(M, u): the loss of weight errors alone, M (k, k), once the bias error β = −d·u, u (k,), is the best one.

    minimise over β:  Σ‖d x̂ + β‖² + λβ²     gradient = 0:  β = −d v / (ν + λ),   loss = d (A − v vᵀ/(ν + λ)) dᵀ
    """
    v, total = G[:-1, -1], G[-1, -1] + ridge_sum
    return torch.addr(G[:-1, :-1], v, v, alpha=-1 / float(total)), v / total


def refine_rows(q: Tensor, grid: Grid, W: Tensor, G: Tensor, ridge_sum: float, limit: int) -> tuple[Tensor, Tensor]:
    """Step one code of each row up or down, the pair of best exact gain first, until none helps or `limit` steps.

    A step of ±s in column j changes the row's loss by ±2 s g_j + s² M_jj with g = d M; the better sign is that of −g_j,
    so the best column has the least s M_jj − 2|g_j|. The loss never rises. Returns q (n, k) and the bias (n,) that
    belongs to it. q, W and G float64; codes stay inside the grid.
    """
    M, u = without_bias(G, ridge_sum)
    target, scale = W[:, : len(M)], grid.scale.to(W.dtype)

    def refine(rows: slice) -> Tensor:
        own = q[rows].clone(memory_format=torch.contiguous_format)
        return _descend(own, target[rows], scale[rows], grid.qmin[rows], grid.qmax[rows], M, limit)

    q = torch.cat(by_rows(refine, q))
    return q, W[:, -1] - (q * scale - target) @ u


def _descend(q: Tensor, W: Tensor, s: Tensor, lo: Tensor, hi: Tensor, M: Tensor, limit: int) -> Tensor:
    """Changes q (n, k), in C order, and returns it; the work of a sweep is told at `_sweep`."""
    g, diagonal = (q * s).sub_(W) @ M, M.diagonal().clamp_min(0)  # a constant input leaves ±1e-17
    lo, hi, s = (t[:, 0].to(q.dtype) for t in (lo, hi, s))
    if compiled := kernels(q):
        compiled.step_rows(*(t.contiguous().numpy() for t in (q, g, diagonal, s, lo, hi, M)), limit)
    else:
        _sweep(q, g, diagonal, s, lo, hi, M, limit)
    return q


def _sweep(q: Tensor, g: Tensor, diagonal: Tensor, s: Tensor, lo: Tensor, hi: Tensor, M: Tensor, limit: int) -> None:
    """Changes q; a row stops at its first sweep without a step, and leaves the other arrays when half have stopped.

    a ≤ 0 ≤ b (n, k) bound the gradient that a legal step can answer: 0 where the grid ends, else infinite. With g held
    between them the gain takes three passes, and where no step is legal it is s M_jj ≥ 0: none.
    """
    cost = s[:, None] * diagonal  # (n, k)
    a, b = _bounds(q, lo[:, None], hi[:, None])
    rows = torch.arange(len(q), device=q.device)  # of q, in the arrays
    for _ in range(limit):
        pull = torch.clamp(g, a, b).abs_()
        gain, j = torch.sub(cost, pull, alpha=2, out=pull).min(1)
        helps = gain < 0
        n_helped = int(helps.sum())
        if n_helped == 0:
            break
        if 2 * n_helped < len(rows):
            kept = helps.nonzero()[:, 0]
            helps, rows, j, g, cost, a, b, s, lo, hi = (
                t.index_select(0, kept) for t in (helps, rows, j, g, cost, a, b, s, lo, hi)
            )
        at = torch.arange(len(rows), device=q.device), j
        step = torch.where(helps, -g[at].sign(), 0)
        q[rows, j] += step
        a[at], b[at] = _bounds(q[rows, j], lo, hi)
        g.addcmul_((step * s)[:, None], M.index_select(0, j))


def _bounds(q: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b), as q: a code at hi has no answer to a negative gradient, one at lo none to a positive."""
    endless = torch.full_like(q, torch.inf)
    return torch.where(q < hi, -endless, 0), torch.where(q > lo, endless, 0)
