"""One grid per weight row: the percentile range with the least squared error.

Letters:  W (n, k) weight;  p percentile
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from erq_export.contract.formats.affine import (
    Grid,
    asymmetric_grid,
    common_power,
    snap_to_ratio,
    symmetric_grid,
)
from erq_export.contract.formats.format import joined
from erq_export.contract.targets import GridRules

from ..observers import SMALLEST_STEP
from ..percentiles import WEIGHTS
from ..search import Search, of_rows
from .rows import by_rows

Make = Callable[..., Grid]
Snap = Callable[[Tensor], Tensor]


def weight_grid(W: Tensor, *, bits: int, rules: GridRules, percentiles: Sequence[float] = WEIGHTS["wide"]) -> Grid:
    """Search the range of every row at once: tensors of shape (n, 1).

    The rows are sorted once; each percentile is then a lookup. Below 8 bits grids are asymmetric and hold 0, so that
    their codes fit int8 with zero point 0; at 8 bits only symmetric ones do, and so it is with 4 bits in INT4 (3 bits
    always fit it: a grid of 8 codes that holds 0 lies within [−7, 7]). Without a container any range will do, and its step
    is only kept above what float32 can count up to. Source:
    docs/method.md, "Range search"; docs/backends.md, "Containers".
    """
    symmetric = (bits == 8 and rules.holds_zero) or (bits == 4 and rules.int4_weights)
    make = partial(symmetric_grid if symmetric else asymmetric_grid, bits=bits)
    widest = make(*_held(*W.aminmax(dim=1, keepdim=True), rules))
    snap: Snap | None = partial(snap_to_ratio, s0=common_power(widest.scale)) if rules.half_scales else None

    def search(rows: slice) -> Grid:
        return _search(W[rows], make=make, snap=snap, rules=rules, percentiles=percentiles)

    return joined(by_rows(search, W), torch.cat)


def _search(W: Tensor, *, make: Make, snap: Snap | None, rules: GridRules, percentiles: Sequence[float]) -> Grid:
    """A few rows, of one grid each."""
    ordered = _sorted(W)
    if not rules.holds_zero:
        snap = partial(torch.maximum, ordered[:, [0, -1]].abs().amax(1, keepdim=True).float() * SMALLEST_STEP)
    ranges = [(_quantile(ordered, 1 - p), _quantile(ordered, p)) for p in percentiles]
    searched = Search(candidates=[make(*_held(lo, hi, rules), snap=snap) for lo, hi in ranges], error=of_rows)
    searched.add(W)
    return searched.best()


def _held(lo: Tensor, hi: Tensor, rules: GridRules) -> tuple[Tensor, Tensor]:
    """The range, widened to hold 0 where the rules say so."""
    return (lo.clamp_max(0), hi.clamp_min(0)) if rules.holds_zero else (lo, hi)


def _sorted(W: Tensor) -> Tensor:
    """Each row in ascending order (n, k). On a CPU NumPy's sort, some five times as fast as torch's."""
    return W.sort(1).values if W.is_cuda else torch.from_numpy(np.sort(W.numpy(), axis=1))


def _quantile(ordered: Tensor, p: float) -> Tensor:
    """Linear interpolation in sorted rows: (n, k) → (n, 1)."""
    position = p * (ordered.shape[1] - 1)
    i = int(position)
    j = min(i + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, i : i + 1], ordered[:, j : j + 1], position - i)
