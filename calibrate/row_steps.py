"""Refinement after the last half, over the whole row: single steps on the grid, each the best one left.

Goes beyond the paper. Wqer decides half of the columns without knowing how the other half will be rounded; when all are
rounded, some decisions are worth taking back, and the bias can absorb what a step leaves.

Letters:  W (n, K) what the row should be (after Aqer), the bias its last column;  q (n, k) integers, s (n, 1) their scale
          d = s q − W (n, k);  G = [[A, v], [vᵀ, ν]] (K, K) summed second moment of x̃ = [x̂; 1];  λ ridge of the bias
"""

import torch
from torch import Tensor

from erq_export.affine import Grid

CACHED_ENTRIES = 2**17  # float64 numbers of each working array of a piece: they stay in the cache of a CPU


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
    """One piece of rows; a row stops at its first sweep without a step, and leaves the piece when half have stopped."""
    done, rows = q.clone(), torch.arange(len(q), device=q.device)
    q, g, diagonal = q.clone(), (q * s - W) @ M, M.diagonal()
    for _ in range(limit):
        blocked = torch.where(g > 0, q <= lo, q >= hi)
        gain, j = (s * diagonal - 2 * g.abs()).masked_fill_(blocked, torch.inf).min(1)
        helps = gain < 0
        n_helped = int(helps.sum())
        if n_helped == 0:
            break
        if 2 * n_helped < len(rows):
            done[rows] = q
            q, g, s, lo, hi, rows, j = (t[helps] for t in (q, g, s, lo, hi, rows, j))
            helps = torch.ones_like(rows, dtype=torch.bool)
        at = torch.arange(len(rows), device=q.device), j
        step = torch.where(helps, -g[at].sign(), 0)
        q[at] += step
        g.addcmul_((step * s[:, 0])[:, None], M[j])
    done[rows] = q
    return done
