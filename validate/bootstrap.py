"""How sure a ratio of speeds is: a bootstrap over rounds, in blocks, because neighbouring rounds resemble each other.

Letters:  r (n,) ratios, one a round, in the order in which they were measured;  b rounds in a block;  k blocks drawn
Source of the block bootstrap: docs/bench.md, "The interval".
"""

import math

import numpy as np
from numpy.typing import NDArray

from erq_export.contract.bench import Speedup

DRAWS = 2000
TAIL = 2.5  # per cent on each side: a 95 % interval
SEED = 0


def speedup(baseline: NDArray[np.float64], t: NDArray[np.float64], *, than: str) -> Speedup:
    """Times as fast as the baseline, both (n,) seconds, paired by round."""
    r = baseline / t
    low, high = interval(r)
    return Speedup(than=than, median=float(np.median(r)), low=low, high=high)


def interval(r: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile interval of the median of r, from a circular block bootstrap.

    b = ⌈√n⌉: what makes rounds alike (a neighbour on the machine, a clock that moves) lasts for several; k = ⌈n / b⌉ blocks
    that begin anywhere, the end joined to the beginning, make a series of n again. Equal r give equal intervals.
    """
    n = len(r)
    b = math.ceil(math.sqrt(n))
    k = math.ceil(n / b)
    starts = np.random.default_rng(SEED).integers(0, n, (DRAWS, k))
    rounds = (starts[:, :, None] + np.arange(b)).reshape(DRAWS, k * b)[:, :n] % n  # (DRAWS, n)
    low, high = np.percentile(np.median(r[rounds], axis=1), [TAIL, 100 - TAIL])
    return float(low), float(high)
