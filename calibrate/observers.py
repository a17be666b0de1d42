"""Activation ranges: exact percentiles from streamed tails, and the candidates that they give a range search.

Letters:  p percentile;  g groups: 1 per tensor, k per channel;  n values per group in the whole calibration set
A percentile of 0.999 needs only the largest and smallest 0.1 % of the values. Keeping those makes the percentile exact,
for any number of images, and independent of how they are batched.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.formats.affine import Grid, asymmetric_grid, snap_to_half, symmetric_grid
from erq_export.contract.targets import GridRules

from .search import Error, Search, of_rows, of_tensor

SMALLEST_STEP = 2.0**-20  # of a channel's largest value: float32 holds the zero point of a constant channel exactly
CACHED_VALUES = 2**18  # float32 values whose errors are taken at a time: 1 MiB stays in the cache of a CPU


def groups(x: Tensor, *, per_channel: bool) -> Tensor:
    """x (rows, k) as (g, values): one group for the tensor, or one a channel."""
    return x.T if per_channel else x.reshape(1, -1)


@dataclass
class Tails:
    """The largest and the smallest `keep` of n values per group, as far as they have been seen: (g, ≤ keep)."""

    n: int
    keep: int
    percentiles: tuple[float, ...]
    top: Tensor | None = None
    bottom: Tensor | None = None

    @classmethod
    def of(cls, n: int, percentiles: Sequence[float]) -> "Tails":
        """Room for every percentile of `percentiles` and its interpolation neighbour, from both ends."""
        return cls(n=n, keep=min(n, int((1 - min(percentiles)) * (n - 1)) + 3), percentiles=tuple(percentiles))

    def add(self, values: Tensor) -> None:
        """values (g, m): the next m values of each group."""
        self.top = self._outermost(self.top, values, largest=True)  # descending
        self.bottom = self._outermost(self.bottom, values, largest=False)  # ascending

    def _outermost(self, seen: Tensor | None, values: Tensor, *, largest: bool) -> Tensor:
        """The `keep` values nearest to one end. Once a long group has its number, few new values lie beyond its last
        one, and they are found in one pass; a NaN is one of them."""
        if seen is not None:
            if len(values) == 1 and seen.shape[1] == self.keep:
                last = seen[:, -1:]
                values = values[~(values <= last if largest else values >= last)][None]
            values = torch.cat([seen, values], 1)
        return values.topk(min(self.keep, values.shape[1]), largest=largest, sorted=True).values

    def range(self, p: float) -> tuple[Tensor, Tensor]:
        """(quantile(1 − p), quantile(p)) of each group, linearly interpolated: two tensors (g,)."""
        if self.top is None or self.bottom is None:
            raise RuntimeError("no values were added")
        return _from_end(self.bottom, p, self.n), _from_end(self.top, p, self.n)


def _from_end(tail: Tensor, p: float, n: int) -> Tensor:
    """The value that lies (1 − p)(n − 1) steps from the end where `tail` starts."""
    step = (1 - p) * (n - 1)
    i = min(int(step), tail.shape[1] - 1)
    j = min(i + 1, tail.shape[1] - 1)
    return torch.lerp(tail[:, i], tail[:, j], step - int(step))


def range_search(
    tails: Tails, *, bits: int, rules: GridRules, per_channel: bool, error: Error | None = None
) -> Search[Grid]:
    """The search for a layer's input or an operand: one candidate a percentile, tensors of shape () or, per channel, (k, 1).

    A second pass shows it the values that the tails were made of, as `pieces` gives them.
    """
    grids = []
    for p in tails.percentiles:
        lo, hi = (end[:, None] if per_channel else end[0] for end in tails.range(p))
        grids.append(activation_grid(lo, hi, bits=bits, rules=rules, per_channel=per_channel))
    return Search(candidates=grids, error=error or (of_rows if per_channel else of_tensor))


def pieces(x: Tensor, *, per_channel: bool) -> Iterable[Tensor]:
    """x (…, k) as groups, a few rows at a time: (g, m), m values of a channel or whole rows of the tensor."""
    values, k = groups(x, per_channel=per_channel), x.shape[-1]
    rows = max(1, CACHED_VALUES // k)
    few: Iterable[Tensor] = values.split(rows if per_channel else rows * k, 1)
    return few


def activation_grid(lo: Tensor, hi: Tensor, *, bits: int, rules: GridRules, per_channel: bool) -> Grid:
    """The grid for a range, legal on the run's targets.

    Per tensor the range is widened to hold 0, so the codes fit any 8-bit container; 8 bits without a free zero point
    are symmetric. Per channel neither is needed: reparameterisation folds each channel's offset away. Nor is it where
    there is no container.
    """
    if per_channel or not rules.holds_zero:
        largest = torch.maximum(lo.abs(), hi.abs())
        return asymmetric_grid(lo, hi, bits, snap=lambda scale: scale.maximum(largest * SMALLEST_STEP))
    lo, hi = lo.clamp_max(0), hi.clamp_min(0)
    snap = snap_to_half if rules.half_scales else None
    if bits == 8 and not rules.offset_8bit:
        return symmetric_grid(lo, hi, bits, snap=snap)
    return asymmetric_grid(lo, hi, bits, snap=snap)
