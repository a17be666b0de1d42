"""Rounds on a simulated machine: whose turn it is, when warm-up ends, and what a drifting machine does not change."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from simulated_runners import MS, Machine

from erq_export.validate.bootstrap import interval, small_sample_factor, speedup
from erq_export.validate.rounds import AGREEING, LEAST_ROUNDS, WINDOW, Times, measured, order

PIXELS = torch.zeros(1, 3, 2, 2)


def timed(machine: Machine, *ms: float, **changes: object) -> Times:
    runners = [machine.runner("abcdef"[i], one) for i, one in enumerate(ms)]
    given = {"inputs": "resident", "samples": 100, "seconds": 1e6}
    return measured(runners, PIXELS, clock=machine.clock, **given | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_runner_stands_as_often_in_each_place_and_on_either_side_of_a_neighbour(n: int) -> None:
    rounds = [order(i, n) for i in range(2 * n)]
    for r in range(n):
        assert Counter(row.index(r) for row in rounds) == dict.fromkeys(range(n), 2)
    before = Counter(pair for row in rounds for pair in pairwise(row))
    assert all(before[a, b] == before[b, a] for a, b in before)


def test_two_runners_take_turns_and_neither_is_always_the_first() -> None:
    machine = Machine()
    found = timed(machine, 2.0, 1.0, samples=4)
    assert "".join(machine.ran)[2 * found.warm_up :] == "abbabaab"
    assert np.allclose(found.t, [2e-3, 1e-3], atol=1e-9)


def test_warm_up_ends_when_medians_agree() -> None:
    machine = Machine()
    steady = timed(machine, 2.0, 1.0)
    assert (steady.warm_up, steady.settled) == (WINDOW + AGREEING - 1, (True, True))
    machine = Machine()
    slow = [machine.runner("a", 2.0), machine.runner("b", 1.0, slow=8)]
    found = measured(slow, PIXELS, inputs="resident", samples=100, seconds=1e6, clock=machine.clock)
    assert found.warm_up > steady.warm_up
    assert found.settled == (True, True)
    assert np.allclose(found.t, [2e-3, 1e-3], atol=1e-9)  # none of the slow ones counts


def test_warm_up_of_a_machine_that_never_settles_ends_and_says_so() -> None:
    machine = Machine(slowness=lambda now: 1.0 + now / (10 * MS))
    found = timed(machine, 1.0, 1.0, samples=30)
    assert found.warm_up == 30
    assert found.settled == (False, False)


@pytest.mark.parametrize(("seconds", "rounds"), [(1e6, 100), (0.03, 20), (1e-6, LEAST_ROUNDS)])
def test_a_line_ends_with_its_samples_or_its_seconds_but_never_below_the_least(seconds: float, rounds: int) -> None:
    found = timed(Machine(), 2.0, 1.0, seconds=seconds)  # 3 ms a round, two runners have twice the seconds
    assert len(found.t) == rounds


def test_inputs_from_the_host_are_another_time() -> None:
    machine = Machine()
    runners = [machine.runner("a", 2.0, copies=3.0)]
    for inputs, want in (("resident", 2e-3), ("host", 5e-3)):
        t = measured(runners, PIXELS, inputs=inputs, samples=10, seconds=1e6, clock=machine.clock).t  # type: ignore[arg-type]
        assert np.allclose(t, want)


def ratio_of(machine: Machine, *ms: float) -> tuple[float, float, float]:
    t = timed(machine, *ms).t
    found = speedup([t[:, 0]], [t[:, 1]], than="a")
    return found.low, found.ratio, found.high


def test_a_machine_that_gets_slower_and_slower_does_not_bias_the_ratio() -> None:
    """Ten times as slow in the end: runs of one runner after the other would give a ratio far from 2."""
    machine = Machine(noise=0.02, slowness=lambda now: 1.0 + now / (100 * MS))
    low, median, high = ratio_of(machine, 2.0, 1.0)
    assert machine.slowness(machine.now) > 5
    assert low <= median <= high
    assert median == pytest.approx(2.0, rel=0.03)


def test_a_planted_slowdown_is_detected_and_none_is_where_none_is() -> None:
    low, _, high = ratio_of(Machine(noise=0.1), 1.0, 1.1)
    assert high < 1
    low, _, high = ratio_of(Machine(noise=0.1), 1.0, 1.0)
    assert low < 1.02
    assert high > 0.98


@pytest.mark.parametrize("seed", range(5))
def test_two_measurements_of_one_machine_agree_within_their_intervals(seed: int) -> None:
    first, second = (ratio_of(Machine(seed=s, noise=0.2), 2.0, 1.5) for s in (seed, seed + 100))
    assert first[0] <= second[2]
    assert second[0] <= first[2]
    assert first[2] - first[0] < 0.3  # they would agree if they said nothing


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """95 % of 200 series of independent ratios; the spread of such a share is 1.5 points, blocks of √n cost a few."""
    chance = np.random.default_rng(0)
    covered = [low <= 1.0 <= high for low, high in (interval([np.exp(chance.normal(0, 0.1, 60))]) for _ in range(200))]
    assert 0.85 < float(np.mean(covered)) <= 0.995


def test_the_interval_is_wider_where_neighbours_resemble_each_other() -> None:
    chance = np.random.default_rng(0)
    single = 1 + 0.1 * chance.standard_normal(25)
    alike, mixed = np.repeat(single, 10), chance.permutation(np.repeat(single, 10))
    widths = [high - low for low, high in (interval([alike]), interval([mixed]))]
    assert widths[0] > 1.5 * widths[1]


def test_equal_rounds_give_equal_intervals() -> None:
    r = 1 + np.random.default_rng(0).random(50)
    assert interval([r, r + 1]) == interval([r.copy(), r + 1])
    assert interval([np.full(10, 1.5)] * 3) == pytest.approx((1.5, 1.5))


@pytest.mark.parametrize("n", [2, 20])
@pytest.mark.parametrize(("between", "within"), [(0.03, 0.03), (0.03, 0.005)])
def test_eight_sittings_cover_the_truth_as_often_as_they_say(n: int, between: float, within: float) -> None:
    """Of 200; without `small_sample_factor` it were 87 to 93 %."""
    chance = np.random.default_rng(0)

    def sittings() -> list[NDArray[np.float64]]:
        return [np.exp(chance.normal(0, between) + chance.normal(0, within, n)) for _ in range(8)]

    covered = [low <= 1.0 <= high for low, high in (interval(sittings()) for _ in range(200))]
    assert 0.92 <= float(np.mean(covered)) <= 0.995


def test_few_sittings_are_stretched_as_students_quantile_and_many_are_not() -> None:
    assert small_sample_factor(1) == 1.0
    assert small_sample_factor(8) == pytest.approx(2.365 / 1.960 * math.sqrt(8 / 7), abs=1e-3)
    assert 1.0 < small_sample_factor(100) < 1.02
