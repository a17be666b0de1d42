"""Rows to round: weights, their grid, and the moment that a rounding is judged by."""

import torch
from layer_rows import layer_rows
from torch import Tensor

from erq_export.contract.formats.affine import Grid


def case(*, h: int = 8, n: int = 40, seed: int = 0, clipped: bool = False) -> tuple[Tensor, Grid, Tensor]:
    """(W, grid, M): n rows of h weights on 3 bits, and the second moment of h correlated inputs. `clipped`: the range
    is half of what the weights need."""
    rows = layer_rows(k=max(h, 3), n=n, seed=seed)
    M = (rows.X_hat.T @ rows.X_hat / len(rows.X))[:h, :h]
    W = rows.W[:, :h]
    limits = W.abs().amax(1, keepdim=True).float() * (0.5 if clipped else 1)
    scale = 2 * limits / 7
    return W, Grid(scale=scale, qmin=torch.full_like(scale, -4), qmax=torch.full_like(scale, 3)), M


def exact_case(*, h: int = 12, n: int = 60, seed: int = 0) -> tuple[Tensor, Grid, Tensor]:
    """Small multiples of powers of two: every product and sum is exact, so equal really means equal."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randint(-511, 512, (n, h), generator=generator).double() / 128
    A = torch.randint(-3, 4, (h, h), generator=generator).double()
    scale = torch.full((n, 1), 0.5)
    qmin = torch.full((n, 1), -6.0)
    return W, Grid(scale=scale, qmin=qmin, qmax=qmin + 15), A @ A.T + 4


def loss(W: Tensor, rounded: Tensor, M: Tensor) -> Tensor:
    """d M dᵀ of every row: (n,)."""
    d = rounded - W
    return ((d @ M) * d).sum(1)
