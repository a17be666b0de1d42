"""How sure a ratio of speeds is: a bootstrap over sittings, and within each over rounds in blocks, because neighbours resemble
each other.

Letters:  r (n,) ratios of one sitting, one a round, in the order in which they were measured;  S sittings;  m their medians;
    b rounds in a block;  k blocks drawn
Sources: docs/bench.md, "The interval".
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from erq_export.contract.bench import Speedup

DRAWS = 2000
LEVEL = 0.95
SEED = 0


def speedup(baseline: Sequence[NDArray[np.float64]], t: Sequence[NDArray[np.float64]], *, than: str) -> Speedup:
    """Times as fast as the baseline: of every sitting (n,) seconds of both, paired by round."""
    r = [b / own for b, own in zip(baseline, t, strict=True)]
    low, high = interval(r)
    return Speedup(than=than, ratio=math.exp(np.mean([np.log(np.median(one)) for one in r])), low=low, high=high)


def interval(r: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The 95 % interval of the geometric mean of the sittings' medians, from a bootstrap on two levels.

    A draw takes S sittings, some more than once, and of each a series of blocks: what makes rounds alike lasts for several,
    what makes a sitting's rounds alike (where its runners lie in memory) for the sitting. Equal r give equal intervals.
    """
    chance, S = np.random.default_rng(SEED), len(r)
    log_m = np.stack([np.log(_medians(one, chance)) for one in r])  # (S, DRAWS)
    drawn = log_m[chance.integers(0, S, (S, DRAWS)), chance.integers(0, DRAWS, (S, DRAWS))].mean(axis=0)
    centre = float(np.mean([np.log(np.median(one)) for one in r]))
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    below, above = min(0.0, low - centre), max(0.0, high - centre)  # medians of few rounds can be biased
    return math.exp(centre + small_sample_factor(S) * below), math.exp(centre + small_sample_factor(S) * above)


def small_sample_factor(S: int) -> float:
    """By how much an interval drawn from S sittings is too narrow: 1.29 for 8, 1.04 for 50.

    S values vary about their own mean by (S − 1)/S of the variance, and the quantile that belongs to a spread known from S of
    them alone is Student's. One sitting tells nothing of others: 1.
    """
    if S == 1:
        return 1.0
    p = (1 + LEVEL) / 2
    return float(stats.t.ppf(p, S - 1) / stats.norm.ppf(p) * math.sqrt(S / (S - 1)))


def _medians(r: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    """(DRAWS,) medians of series of n rounds in circular blocks.

    b = ⌈√n⌉; k = ⌈n / b⌉ blocks that begin anywhere, the end joined to the beginning, make a series of n again.
    """
    n = len(r)
    b = math.ceil(math.sqrt(n))
    k = math.ceil(n / b)
    starts = chance.integers(0, n, (DRAWS, k))
    rounds = (starts[:, :, None] + np.arange(b)).reshape(DRAWS, k * b)[:, :n] % n  # (DRAWS, n)
    return np.asarray(np.median(r[rounds], axis=1))
