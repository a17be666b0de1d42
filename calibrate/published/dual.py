"""Dual uniform quantization (ERQ, extended paper): the columns of a weight that hold its outliers have a grid of their own.

Letters:  W (n, k) weight;  τ₊, τ₋ (n, 1) where a row's outliers begin;  C the outlier columns
The LayerNorm fold multiplies whole columns, so outliers come by columns; one grid a row would have to span them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.formats.affine import Grid
from erq_export.contract.formats.format import joined
from erq_export.contract.sites import Role
from erq_export.contract.targets import GridRules

from ..percentiles import WEIGHTS
from ..solve.problem import Solution
from ..solve.weight_grid import weight_grid

DUAL_ROLES: tuple[Role, ...] = ("qkv", "fc1")
TAIL = 0.99
ROWS_A_COLUMN = 20  # at most one outlier column for so many rows
LARGEST_QUANTILE = 2**23  # entries; torch.quantile refuses twice as many


@dataclass(frozen=True, kw_only=True)
class DualSolution(Solution):
    """A solution whose grid has tensors (n, k): of its own for the columns `outliers` (m,), ascending, at least one."""

    outliers: Tensor


def outlier_columns(W: Tensor) -> Tensor:
    """C, ascending (m,): the n // 20 columns that are most often beyond τ, fewer if fewer ever are
    (docs/method.md, "Dual uniform quantization").

    τ₊ is the 99th percentile of a row's positive entries, τ₋ the 1st of its negative ones; a row that has none marks none
    on that side. Columns marked equally often come in their natural order; one column at least stays outside C.
    """
    marks = torch.cat([_marked(rows) for rows in W.split(max(1, LARGEST_QUANTILE // W.shape[1]))]).sum(0)  # (k,)
    n_outliers = min(len(W) // ROWS_A_COLUMN, int((marks > 0).sum()), W.shape[1] - 1)
    return marks.argsort(descending=True, stable=True)[:n_outliers].sort().values


def _marked(W: Tensor) -> Tensor:
    """Is an entry beyond its row's τ? As W; a percentile of nothing is NaN, and nothing is beyond NaN."""
    above = torch.nanquantile(torch.where(W > 0, W, torch.nan), TAIL, dim=1, keepdim=True)
    below = torch.nanquantile(torch.where(W < 0, W, torch.nan), 1 - TAIL, dim=1, keepdim=True)
    return above.lt(W) | below.gt(W)


def dual_grid(
    W: Tensor, *, bits: int, rules: GridRules, percentiles: Sequence[float] = WEIGHTS["wide"]
) -> tuple[Grid, Tensor | None]:
    """(grid, C): for each row one grid fitted to W[:, C] and one to the other columns, as a grid of shape (n, k).

    Without outliers the usual grid (n, 1), and None. C is fixed here, before any column is quantized.
    """
    columns = outlier_columns(W)
    if len(columns) == 0:
        return weight_grid(W, bits=bits, rules=rules, percentiles=percentiles), None
    inside = torch.zeros(W.shape[1], dtype=torch.bool, device=W.device)
    inside[columns] = True
    own, usual = (weight_grid(W[:, c], bits=bits, rules=rules, percentiles=percentiles) for c in (inside, ~inside))
    return joined([own, usual], lambda two: torch.where(inside, two[0], two[1])), columns  # (n, k) each
