"""How fast several runners are on one batch, measured in turns so that all of them see the same machine.

Letters:  t_r (rounds,) seconds of runner r;  runner 0 is the baseline
Every round runs each runner once, in order (ABAB…): a machine that slows down slows down all of them. Hence ratios are
taken within a round, t_0 / t_r, before their quartiles.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from erq_export.backends.machine import processor as processor
from erq_export.contract.progress import Progress
from erq_export.contract.report import Latency, Ratio, Timing

from .runners import Runner

ROUNDS = 200
BUDGET_S = 30.0
LEAST_ROUNDS = 10  # whatever they take
WARM_UP = 5
Clock = Callable[[], float]  # seconds


def measure_latency(
    runners: Sequence[Runner],
    pixels: Tensor,
    *,
    threads: int,
    rounds: int = ROUNDS,
    budget_s: float = BUDGET_S,
    warm_up: int = WARM_UP,
    clock: Clock = time.perf_counter,
    progress: Progress = lambda *_: None,
) -> Latency:
    """Time the runners on `pixels` (B, 3, H, W): `rounds` rounds, or as many as begin within `budget_s`, at least 10.

    `threads` is recorded, not set: the runners must have been made with it. ValueError where two share a name.
    """
    (t,) = in_turns(
        runners, pixels, clocks=(clock,), rounds=rounds, budget_s=budget_s, warm_up=warm_up, progress=progress
    )
    names = [runner.name for runner in runners]
    return Latency(
        batch=len(pixels),
        rounds=len(t),
        warm_up=warm_up,
        threads=threads,
        processor=processor(),
        timings={name: timing(t[:, r]) for r, name in enumerate(names)},
        ratios={name: ratio(t[:, 0], t[:, r]) for r, name in enumerate(names) if r > 0},
    )


def in_turns(
    runners: Sequence[Runner],
    pixels: Tensor,
    *,
    clocks: Sequence[Clock] = (time.perf_counter,),
    least: int = LEAST_ROUNDS,
    rounds: int = ROUNDS,
    budget_s: float = BUDGET_S,
    warm_up: int = WARM_UP,
    progress: Progress = lambda *_: None,
) -> NDArray[np.float64]:
    """Seconds (clocks, rounds, runners): every round runs each runner once on `pixels`, read by all clocks at once.

    `rounds` rounds, or as many as begin within `budget_s` of the first clock, at least `least`. ValueError where two
    runners share a name.
    """
    names = [runner.name for runner in runners]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"runners need different names, got {names}")
    for _ in range(warm_up):
        for runner in runners:
            runner.logits(pixels)
    seconds: list[list[list[float]]] = []
    begin = clocks[0]()
    while len(seconds) < rounds and (len(seconds) < least or clocks[0]() - begin < budget_s):
        progress("latency", len(seconds), rounds)
        seconds.append([_timed(runner, pixels, clocks) for runner in runners])
    return np.array(seconds).transpose(2, 0, 1)


def timing(t: NDArray[np.float64]) -> Timing:
    """Percentiles of one runner's seconds (rounds,), in milliseconds."""
    p50, p90, p99 = (1e3 * float(p) for p in np.percentile(t, [50, 90, 99]))
    return Timing(p50_ms=p50, p90_ms=p90, p99_ms=p99, mean_ms=1e3 * float(t.mean()), min_ms=1e3 * float(t.min()))


def ratio(baseline: NDArray[np.float64], t: NDArray[np.float64]) -> Ratio:
    """Times as fast as the baseline, both (rounds,), paired by round."""
    q25, median, q75 = (float(q) for q in np.percentile(baseline / t, [25, 50, 75]))
    return Ratio(q25=q25, median=median, q75=q75, of_medians=float(np.median(baseline) / np.median(t)))


def _timed(runner: Runner, pixels: Tensor, clocks: Sequence[Clock]) -> list[float]:
    begin = [clock() for clock in clocks]
    runner.logits(pixels)
    return [clock() - start for clock, start in zip(clocks, begin, strict=True)]
