"""Activation ranges: exact percentiles from streamed tails, and the percentile whose grid has the least squared error.

Letters:  p percentile;  g groups: 1 per tensor, k per channel;  n values per group in the whole calibration set
A percentile of 0.999 needs only the largest and smallest 0.1 % of the values. Keeping those makes the percentile exact,
for any number of images, and independent of how they are batched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erq_export.contract.formats.affine import Grid, asymmetric_grid, fake_quantize, snap_to_half, symmetric_grid
from erq_export.contract.targets import GridRules

SMALLEST_STEP = 2.0**-20  # of a channel's largest value: float32 holds the zero point of a constant channel exactly
CACHED_VALUES = 2**18  # float32 values whose errors are taken at a time: 1 MiB stays in the cache of a CPU

PERCENTILES = (0.999, 0.9999, 0.99999)  # RepQ-ViT's grid, used by ERQ for activations


def groups(x: Tensor, *, per_channel: bool) -> Tensor:
    """x (rows, k) as (g, values): one group for the tensor, or one a channel."""
    return x.T if per_channel else x.reshape(1, -1)


@dataclass
class Tails:
    """The largest and the smallest `keep` of n values per group, as far as they have been seen: (g, ≤ keep)."""

    n: int
    keep: int
    top: Tensor | None = None
    bottom: Tensor | None = None

    @classmethod
    def of(cls, n: int, percentiles: Sequence[float] = PERCENTILES) -> "Tails":
        """Room for every percentile of `percentiles` and its interpolation neighbour, from both ends."""
        return cls(n=n, keep=min(n, int((1 - min(percentiles)) * (n - 1)) + 3))

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


@dataclass
class RangeSearch:
    """For one layer's input: one candidate grid a percentile; the squared error of each is summed in a second pass."""

    candidates: list[Grid]
    per_channel: bool
    errors: list[Tensor] = field(default_factory=list)

    @classmethod
    def from_tails(
        cls,
        tails: Tails,
        *,
        bits: int,
        rules: GridRules,
        per_channel: bool,
        percentiles: Sequence[float] = PERCENTILES,
    ) -> "RangeSearch":
        ranges = [tails.range(p) for p in percentiles]
        grids = [activation_grid(lo, hi, bits=bits, rules=rules, per_channel=per_channel) for lo, hi in ranges]
        return cls(candidates=grids, per_channel=per_channel)

    def add(self, x: Tensor) -> None:
        """x (rows, k): the same rows that the tails were made of."""
        values = groups(x, per_channel=self.per_channel)  # (g, m)
        wide = [grid.map(lambda t: t[:, None]) for grid in self.candidates]
        for piece in values.split(max(1, CACHED_VALUES // len(values)), 1):
            sums = [(fake_quantize(piece, grid) - piece).double().square().sum(1) for grid in wide]
            self.errors = [a + b for a, b in zip(self.errors, sums, strict=True)] if self.errors else sums

    def best(self) -> Grid:
        """Per group the grid of least squared error, the first on ties: tensors of shape (k,), or () per tensor."""
        choice = torch.stack(self.errors).argmin(0)  # (g,)

        def pick(name: str) -> Tensor:
            stacked: Tensor = torch.stack([getattr(grid, name) for grid in self.candidates])
            chosen = stacked.gather(0, choice[None])[0]
            return chosen if self.per_channel else chosen[0]

        return Grid(scale=pick("scale"), qmin=pick("qmin"), qmax=pick("qmax"))


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
