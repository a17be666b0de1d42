"""Runners measured in rounds, each of which runs every runner once, in an order that changes from round to round.

Letters:  t (rounds, runners) seconds;  n runners
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erq_export.contract.bench import Inputs
from erq_export.contract.progress import Progress

from .runners import Runner

LEAST_ROUNDS = 2  # an order and its reverse, whatever they take
WINDOW = 5  # runs in a median of the warm-up
AGREEING = 10  # such medians in succession
WITHIN = 0.05  # of their least
TELL_EVERY = 8  # rounds
Clock = Callable[[], int]  # nanoseconds
Call = Callable[[], None]
Timer = Callable[[Call], float]  # seconds that the call takes


@dataclass(frozen=True, kw_only=True)
class Times:
    """t (rounds, runners);  warm_up rounds before them;  settled: of every runner, whether its last times agree."""

    t: NDArray[np.float64]
    warm_up: int
    settled: tuple[bool, ...]


@dataclass
class Settling:
    """Whether the medians of the last WINDOW runs have agreed, WITHIN a share, at AGREEING runs in succession."""

    runs: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        self.runs.append(seconds)
        if len(self.runs) >= WINDOW:
            self.medians.append(statistics.median(self.runs[-WINDOW:]))

    @property
    def settled(self) -> bool:
        last = self.medians[-AGREEING:]
        return len(last) == AGREEING and max(last) <= (1 + WITHIN) * min(last)


def measured(
    runners: Sequence[Runner],
    pixels: Tensor,
    *,
    inputs: Inputs,
    samples: int,
    seconds: float,
    least: int = LEAST_ROUNDS,
    turn: int = 0,
    settling: Sequence[Settling] | None = None,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = lambda *_: None,
    what: str = "bench",
) -> Times:
    """Every runner's times on `pixels` (B, 3, H, W).

    `samples` rounds, or as many as begin while the runners have had `seconds` each on average, at least `least`.
    Before that, rounds that do not count: LEAST_ROUNDS, and more until all runners' times agree, for at most half as long.
    turn: which of the rounds' orders comes first.  settling: of every runner, what earlier calls have seen of its times.
    """
    timers = [timer(runner, inputs, clock) for runner in runners]
    calls = [call(runner, pixels, inputs) for runner in runners]
    n = len(runners)

    def one_round(i: int) -> list[float]:
        row = [0.0] * n
        for r in order(turn + i, n):
            row[r] = timers[r](calls[r])
        return row

    settling, begin, warm_up = settling or [Settling() for _ in runners], clock(), 0
    enough = max(samples, WINDOW + AGREEING)
    limit = 1e9 * seconds * n
    while warm_up < LEAST_ROUNDS or (
        not all(s.settled for s in settling) and warm_up < enough and clock() - begin < limit / 2
    ):
        if warm_up % TELL_EVERY == 0:
            progress(f"{what}: warm-up", warm_up, enough)
        for s, taken in zip(settling, one_round(warm_up), strict=True):
            s.add(taken)
        warm_up += 1
    rows: list[list[float]] = []
    begin = clock()
    while len(rows) < samples and (len(rows) < least or clock() - begin < limit):
        if len(rows) % TELL_EVERY == 0:
            progress(what, len(rows), samples)
        rows.append(one_round(len(rows)))
        for s, taken in zip(settling, rows[-1], strict=True):
            s.add(taken)
    return Times(t=np.array(rows), warm_up=warm_up, settled=tuple(s.settled for s in settling))


def order(i: int, n: int) -> list[int]:
    """Who runs when in round i: each runner comes as often in each place, and before each neighbour as often as after it.

    Rounds 2j and 2j + 1 are one order and its reverse; j rotates it. Two runners: AB BA BA AB.
    """
    turn = [(i // 2 + r) % n for r in range(n)]
    return turn[::-1] if i % 2 else turn


def call(runner: Runner, pixels: Tensor, inputs: Inputs) -> Call:
    """What is timed: a run on what lies on the device, or one from host to host."""
    if inputs == "resident":
        return runner.prepared(pixels)

    def run() -> None:
        runner.logits(pixels)

    return run


def timer(runner: Runner, inputs: Inputs, clock: Clock) -> Timer:
    """CUDA's events where a run is only enqueued on a GPU, else the clock."""
    if inputs == "resident" and runner.device.type == "cuda":
        return lambda run: _on_gpu(runner, run)

    def by_clock(run: Call) -> float:
        begin = clock()
        run()
        return (clock() - begin) / 1e9

    return by_clock


def _on_gpu(runner: Runner, run: Call) -> float:
    """Between two events on torch's stream, the GPU idle before; not yet run on a GPU."""
    runner.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
