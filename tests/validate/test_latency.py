"""Latency with a clock of our own: what is timed, in which order, and what a drifting machine changes."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from erq_export.contract.records import decode, encode
from erq_export.contract.report import Latency
from erq_export.validate.latency import LEAST_ROUNDS, in_turns, measure_latency, ratio, timing

PIXELS = torch.zeros(4, 3, 2, 2)
MS = 2.0**-10  # a binary "millisecond": the clock below then adds without rounding


class Bench:
    """A clock, and runners that let it pass; every call is noted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def runner(self, name: str, cost: Callable[[int], float]) -> "FakeRunner":
        """`cost(i)`: seconds of the runner's i-th call, warm-up included."""
        return FakeRunner(self, name, cost)


class FakeRunner:
    def __init__(self, bench: Bench, name: str, cost: Callable[[int], float]) -> None:
        self.bench, self.name, self.cost, self.n = bench, name, cost, 0

    def logits(self, pixels: Tensor) -> Tensor:
        self.bench.calls.append(self.name)
        self.bench.now += self.cost(self.n)
        self.n += 1
        return pixels.flatten(1)


def measured(a: Callable[[int], float], b: Callable[[int], float], **changes: float) -> tuple[Latency, Bench]:
    bench = Bench()
    runners = [bench.runner("a", a), bench.runner("b", b)]
    given = {"threads": 1, "rounds": 20, "budget_s": 1e9, "warm_up": 2}
    return measure_latency(runners, PIXELS, clock=bench.clock, **given | changes), bench


def test_runners_take_turns() -> None:
    found, bench = measured(lambda _: 2 * MS, lambda _: MS, rounds=12, warm_up=2)
    assert bench.calls == ["a", "b"] * 14
    assert (found.rounds, found.warm_up, found.batch, found.threads) == (12, 2, 4, 1)


def test_a_constant_cost_is_every_percentile() -> None:
    found, _ = measured(lambda _: 2 * MS, lambda _: MS)
    for name, ms in (("a", 2e3 * MS), ("b", 1e3 * MS)):
        t = found.timings[name]
        assert [t.min_ms, t.p50_ms, t.p90_ms, t.p99_ms, t.mean_ms] == pytest.approx([ms] * 5)
    r = found.ratios["b"]
    assert (r.q25, r.median, r.q75, r.of_medians) == (2, 2, 2, 2)


def test_a_machine_that_slows_down_does_not_change_the_ratio() -> None:
    def slowing(ms: float) -> Callable[[int], float]:
        return lambda i: ms * 2.0 ** (i // 5)

    found, _ = measured(slowing(2 * MS), slowing(MS))
    assert found.timings["a"].p90_ms > 2 * found.timings["a"].p50_ms
    r = found.ratios["b"]
    assert (r.q25, r.median, r.q75) == (2, 2, 2)


def test_the_spread_shows_a_runner_that_wavers() -> None:
    found, _ = measured(lambda _: 2 * MS, lambda i: MS if i % 2 else 4 * MS)
    r = found.ratios["b"]
    assert (r.q25, r.q75) == (0.5, 2)


def test_warm_up_is_not_timed() -> None:
    found, _ = measured(lambda i: 1e6 if i < 2 else MS, lambda _: MS, warm_up=2)
    assert found.timings["a"].p99_ms == pytest.approx(1e3 * MS)
    cold, _ = measured(lambda i: 1e6 if i < 2 else MS, lambda _: MS, warm_up=1)
    assert cold.timings["a"].p99_ms > 1e6


@pytest.mark.parametrize(("budget_s", "rounds"), [(1e9, 50), (30 * 3 * MS, 30), (0.0, LEAST_ROUNDS)])
def test_rounds_end_with_the_budget_but_never_below_the_least(budget_s: float, rounds: int) -> None:
    found, _ = measured(lambda _: 2 * MS, lambda _: MS, rounds=50, budget_s=budget_s)
    assert found.rounds == rounds


def test_every_clock_reads_the_same_runs() -> None:
    bench = Bench()
    runners = [bench.runner("a", lambda _: 2 * MS), bench.runner("b", lambda _: 3 * MS)]
    t = in_turns(runners, PIXELS, clocks=(bench.clock, lambda: 2 * bench.clock()), rounds=4, least=1, budget_s=1e9)
    assert t.shape == (2, 4, 2)
    assert (t[1] == 2 * t[0]).all()
    assert (t[0] == [2 * MS, 3 * MS]).all()


def test_names_must_differ() -> None:
    bench = Bench()
    twins = [bench.runner("a", lambda _: MS), bench.runner("a", lambda _: MS)]
    with pytest.raises(ValueError, match="different names"):
        measure_latency(twins, PIXELS, threads=1)


def test_each_runner_has_its_times_and_all_but_the_first_a_ratio_and_a_file_keeps_them() -> None:
    bench = Bench()
    runners = [bench.runner(name, lambda _, ms=ms: ms * MS) for name, ms in (("a", 4), ("b", 2), ("c", 1))]
    found = measure_latency(runners, PIXELS, threads=3, rounds=10, clock=bench.clock)
    assert decode(Latency, encode(found), source="latency") == found
    assert list(found.timings) == ["a", "b", "c"]
    assert {name: r.median for name, r in found.ratios.items()} == {"b": 2, "c": 4}
    assert (found.threads, found.batch, found.rounds) == (3, 4, 10)
    assert found.processor


def test_progress_counts_rounds() -> None:
    bench, told = Bench(), []
    measure_latency(
        [bench.runner("a", lambda _: MS)],
        PIXELS,
        threads=1,
        rounds=10,
        clock=bench.clock,
        progress=lambda *step: told.append(step),
    )
    assert told == [("latency", i, 10) for i in range(10)]


seconds = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30).map(np.array)


@given(seconds)
def test_percentiles_are_in_order(t: np.ndarray) -> None:
    found = timing(t)
    ordered = [found.min_ms, found.p50_ms, found.p90_ms, found.p99_ms, 1e3 * t.max()]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(ordered))
    assert found.min_ms * (1 - 1e-12) <= found.mean_ms <= 1e3 * t.max() * (1 + 1e-12)


@given(seconds, st.floats(1e-3, 1e3))
def test_a_runner_that_is_always_c_times_as_fast_has_ratio_c(t: np.ndarray, c: float) -> None:
    found = ratio(c * t, t)
    assert [found.q25, found.median, found.q75] == pytest.approx([c] * 3)
    assert found.of_medians == pytest.approx(c)
