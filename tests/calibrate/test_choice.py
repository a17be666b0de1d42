"""The chosen bits are the cheapest within the budget, by enumeration; what the solver says of itself is read."""

from itertools import product
from typing import Any

import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erq_export.calibrate import choice
from erq_export.calibrate.choice import Layer, chosen, mean_bits, total
from erq_export.contract.errors import SpecError

WIDTHS = (2, 3, 4, 8)
costs = st.lists(st.integers(0, 1000), min_size=4, max_size=4)
layer = st.tuples(st.integers(1, 50), costs)


def layers(given: list[tuple[int, list[int]]], scale: float = 1e-5) -> list[Layer]:
    return [
        Layer(path=f"l{i}", n=n, costs={w: scale * c for w, c in zip(WIDTHS, own, strict=True)})
        for i, (n, own) in enumerate(given)
    ]


def enumerated(found: list[Layer], budget: float) -> float:
    every = ({p.path: b for p, b in zip(found, bits, strict=True)} for bits in product(WIDTHS, repeat=len(found)))
    return min(total(found, bits) for bits in every if mean_bits(found, bits) <= budget + 1e-9)


@settings(max_examples=15, deadline=None)
@given(st.lists(layer, min_size=1, max_size=4), st.sampled_from([2.0, 2.5, 3.0, 4.2, 8.0]))
def test_the_choice_is_the_best_there_is(given: list[tuple[int, list[int]]], budget: float) -> None:
    """To the solver's tolerance, 1e-6 of the largest cost."""
    found = chosen(layers(given), budget)
    assert found.mean_bits <= budget + 1e-9
    assert found.mean_bits == mean_bits(layers(given), found.bits)
    assert found.cost == total(layers(given), found.bits)
    assert found.cost <= enumerated(layers(given), budget) + 1e-6 * 1e-2
    assert found.status == "optimal"


def test_weights_count_not_layers() -> None:
    """The large layer pays for eight small ones."""
    small, large = (Layer(path=p, n=n, costs={2: 1.0, 8: 0.0}) for p, n in (("small", 1), ("large", 9)))
    assert chosen([small, large], 2.7).bits == {"small": 8, "large": 2}


def test_a_layer_with_bits_of_its_own_keeps_them_and_counts() -> None:
    own, free = Layer(path="own", n=1, costs={5: 0.0}), Layer(path="free", n=1, costs={2: 1.0, 3: 0.5, 8: 0.0})
    assert chosen([own, free], 4.0).bits == {"own": 5, "free": 3}
    with pytest.raises(SpecError, match=r"mean is 3\.50"):
        chosen([own, free], 3.4)


@pytest.mark.parametrize(
    ("sol_status", "answers", "status"),
    [
        (pulp.LpSolutionIntegerFeasible, True, "limit"),
        (pulp.LpSolutionNoSolutionFound, False, "start kept"),
        (pulp.LpSolutionInfeasible, False, "start kept"),
        (pulp.LpSolutionOptimal, True, "optimal"),
    ],
)
def test_a_solver_that_ran_out_of_time_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, sol_status: int, answers: bool, status: str
) -> None:
    """pulp's status is "Optimal" in all four; the start is the cheapest uniform width."""
    given = [
        Layer(path="a", n=1, costs={2: 1.0, 3: 0.6, 4: 0.0}),
        Layer(path="b", n=1, costs={2: 0.1, 3: 0.05, 4: 0.0}),
    ]

    def solve(model: Any, _solver: Any) -> None:
        model.sol_status = sol_status
        for variable in model.variables():
            variable.varValue = float(variable.name in ("x0_4", "x1_2")) if answers else None

    monkeypatch.setattr(choice.pulp.LpProblem, "solve", solve)
    found = chosen(given, 3.0)
    assert found.status == status
    assert found.bits == ({"a": 4, "b": 2} if answers else {"a": 3, "b": 3})


def test_an_answer_above_the_budget_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def solve(model: Any, _solver: Any) -> None:
        model.sol_status = pulp.LpSolutionIntegerFeasible
        for variable in model.variables():
            variable.varValue = float(variable.name.endswith("_8"))

    monkeypatch.setattr(choice.pulp.LpProblem, "solve", solve)
    assert chosen(layers([(1, [4, 3, 2, 1])]), 3.0).bits == {"l0": 3}
