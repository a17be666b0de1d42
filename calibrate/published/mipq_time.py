"""How long rounding by mixed-integer programs may take, known before the first one is solved.

Letters:  n rows and K columns of a layer's weight, its bias the last column;  b columns a program
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from torch import nn

from erq_export.contract.errors import SpecError
from erq_export.contract.sites import submodule
from erq_export.models.loading import Loaded

from ..solve.wqer import halves

AROUND_S = 0.2  # writing one program's files, starting the solver and reading its answer, on a slow machine
USUAL_S, USUAL_COLUMNS = 0.05, 8  # what most programs of so many columns take (docs/method.md, "MIPQ")


@dataclass(frozen=True, kw_only=True)
class MipqEstimate:
    """So many programs, each ended by the solver after `seconds_each` at the latest."""

    n_programs: int
    seconds_each: float

    @property
    def most_s(self) -> float:
        """No run takes longer."""
        return self.n_programs * (self.seconds_each + AROUND_S)

    def says(self) -> str:
        return (
            f"-O rounding=mipq solves {self.n_programs:,} programs of at most {self.seconds_each:g} s: up to "
            f"{duration(self.most_s)} (most programs of {USUAL_COLUMNS} columns or fewer take {USUAL_S} s, all of them "
            f"{duration(self.n_programs * USUAL_S)})"
        )

    def check(self, limit_s: float, *, option: str) -> None:
        """SpecError where the upper bound is above the limit that `option` sets: a run never stops half-way for its sake."""
        if self.most_s > limit_s:
            raise SpecError(
                f"{self.says()}; the limit is {duration(limit_s)}",
                fix=f"{option} {math.ceil(self.most_s)} (seconds) to allow it, fewer seconds or more columns a program, or "
                f"-O rounding=flip, which takes seconds in all",
            )


def mipq_estimate(layers: Iterable[tuple[int, int]], *, columns: int, seconds: float) -> MipqEstimate:
    """For layers (n, K): every round of ERQ's halving solves n·⌈|S|/b⌉ programs, where S are the columns it rounds."""
    n_programs = sum(n * math.ceil((S.stop - S.start) / columns) for n, K in layers for S, _ in halves(K))
    return MipqEstimate(n_programs=n_programs, seconds_each=seconds)


def weight_shapes(loaded: Loaded) -> list[tuple[int, int]]:
    """(n, K) of every layer that will be quantized, as `mipq_estimate` takes them."""
    sites = [site.path for stage in loaded.stages for site in stage.sites]
    linears = [cast(nn.Linear, submodule(loaded.model, path, nn.Linear)) for path in sites]
    return [(m.out_features, m.in_features + (m.bias is not None)) for m in linears]


def duration(seconds: float) -> str:
    """As a person reads it: 40 s, 12 min, 5.5 h, 130 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"
