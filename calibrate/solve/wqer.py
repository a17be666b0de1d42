"""Weight-quantization error reduction (ERQ's Wqer): quantize half of the remaining columns, let the other half absorb the error.

Letters:  W (n, K) weight, a bias is its last column and stays float;  k quantized columns;  G = Σ x̃ x̃ᵀ (K, K);  N rows of data
          S the half being quantized, R the rest;  d (n, |S|) its rounding error
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from erq_export.contract.formats.affine import Grid

from .rounding import Refinement
from .rows import by_rows


class Absorbing(Protocol):
    """Ridge systems factored for every R: `Ridge`, `WideRidge`."""

    def absorb(self, d: Tensor, S: slice, R: slice) -> Tensor: ...


def halves(n_columns: int) -> Iterator[tuple[slice, slice]]:
    """(S, R) of every round: S is the first half, rounded down, of what is left, in natural order
    (docs/method.md, "Wqer").

    385 columns → |S| = 192, 96, 48, 24, 12, 6, 3, 2, 1; the last column is never in S.
    """
    start = 0
    while n_columns - start > 1:
        middle = start + (n_columns - start) // 2
        yield slice(start, middle), slice(middle, n_columns)
        start = middle


def quantize_columns(
    W: Tensor, G: Tensor, n_rows: int, grid: Grid, ridge: Absorbing, *, k: int, refine: Refinement, limit: int
) -> Tensor:
    """Quantize the first k columns of W (n, K) on `grid`, round by round; returns the new W (n, K), float64.

    With the quantized input fixed, each round chooses d by `refine` on M = G_SS/N and then solves
        minimise over T:  Σ‖T x̃_R + d x̃_S‖² + λ‖T‖²      hence  T = −d G_SR (G_RR + λI)⁻¹        (n, |R|)
    which `ridge` has already factored for every R: its matrix off the diagonal is G. The bias takes part in every R and is
    never rounded; a layer without one rounds its last column to nearest at the end.
    """
    rounds = [(S, R, G[S, S] / n_rows) for S, R in halves(W.shape[1])]

    def quantize_rows(rows: slice) -> Tensor:
        V, levels = W[rows].clone(), grid.map(lambda t: t[rows])
        for S, R, M in rounds:
            rounded = refine(V[:, S], levels.columns(S), M, limit)
            d = rounded - V[:, S]
            V[:, S] = rounded
            V[:, R] += ridge.absorb(d, S, R)
        if k == V.shape[1]:
            V[:, -1:] = levels.dequantize(levels.quantize(V[:, -1:]))
        return V

    return torch.cat(by_rows(quantize_rows, W))
