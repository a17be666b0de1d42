"""Refinement after the last half, over the whole row: single steps on the grid, each the best one left.

Goes beyond the paper. Wqer decides half of the columns without knowing how the other half will be rounded; when all are
rounded, some decisions are worth taking back, and the bias can absorb what a step leaves.

Letters:  W (n, K) what the row should be (after Aqer), the bias its last column;  q (n, k) integers, s (n, 1) their scale
          d = s q − W (n, k);  G = [[A, v], [vᵀ, ν]] (K, K) summed second moment of x̃ = [x̂; 1];  λ ridge of the bias
"""

import torch
from torch import Tensor

from erq_export.affine import Grid

CACHED_ENTRIES = 2**18  # float64 numbers of each working array of a piece: 2 MiB, of some five


def without_bias(G: Tensor, ridge_sum: float) -> tuple[Tensor, Tensor]:
    """(M, u): the loss of weight errors alone, M (k, k), once the bias error β = −d·u, u (k,), is the best one.

    minimise over β:  Σ‖d x̂ + β‖² + λβ²     gradient = 0:  β = −d v / (ν + λ),   loss = d (A − v vᵀ/(ν + λ)) dᵀ
    """
    v, total = G[:-1, -1], G[-1, -1] + ridge_sum
    return G[:-1, :-1] - torch.outer(v, v) / total, v / total


def refine_rows(q: Tensor, grid: Grid, W: Tensor, G: Tensor, ridge_sum: float, limit: int) -> tuple[Tensor, Tensor]:
    """Step one code of each row up or down, the pair of best exact gain first, until none helps or `limit` steps.

    A step of ±s in column j changes the row's loss by ±2 s g_j + s² M_jj with g = d M; the better sign is that of −g_j,
    so the best column has the least s M_jj − 2|g_j|. The loss never rises. Returns q (n, k) and the bias (n,) that
    belongs to it. q, W and G float64; codes stay inside the grid.
    """
    M, u = without_bias(G, ridge_sum)
    k = len(M)
    target, scale = W[:, :k], grid.scale.to(W.dtype)
    size = len(W) if W.is_cuda else max(16, CACHED_ENTRIES // k)
    pieces = zip(*(t.split(size) for t in (q, target, scale, grid.qmin, grid.qmax)), strict=True)
    q = torch.cat([_descend(*piece, M=M, limit=limit) for piece in pieces])
    return q, W[:, k] - (q * scale - target) @ u


def _descend(q: Tensor, W: Tensor, s: Tensor, lo: Tensor, hi: Tensor, *, M: Tensor, limit: int) -> Tensor:
    """One piece of rows; a row stops at its first sweep without a step, and leaves the arrays when half have stopped.

    a ≤ 0 ≤ b (n, k) bound the gradient that a legal step can answer: 0 where the grid ends, else infinite. With g held
    between them the gain takes three passes, and where no step is legal it is s M_jj ≥ 0: none.
    """
    q, g = q.clone(), (q * s - W) @ M  # q: the result; all else: the rows still in the arrays
    cost = s * M.diagonal().clamp_min(0)  # (n, k); a constant input leaves ±1e-17
    (a, b), rows = _bounds(q, lo, hi), torch.arange(len(q), device=q.device)
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
        a[at], b[at] = _bounds(q[rows, j], lo[:, 0], hi[:, 0])
        g.addcmul_((step * s[:, 0])[:, None], M.index_select(0, j))
    return q


def _bounds(q: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b), as q: a code at hi has no answer to a negative gradient, one at lo none to a positive."""
    endless = torch.full_like(q, torch.inf)
    return torch.where(q < hi, -endless, 0), torch.where(q > lo, endless, 0)
