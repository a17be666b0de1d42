"""The bits of each layer that cost least within a budget of weight bits: a small integer program, solved with pulp.

Letters:  ℓ layers of n_ℓ weights;  b bits that a layer may have, at the cost c_ℓb;  x_ℓb ∈ {0, 1} which it gets;  B the budget
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pulp

from erq_export.contract.errors import MachineError, SpecError

from .published.solver import find_solver

LARGEST = 1e3  # coefficient handed to the solver, whose tolerances are absolute
SECONDS = 60.0
Status = Literal["optimal", "limit", "start kept"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """n weights, and what each width costs."""

    path: str
    n: int
    costs: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Bits by path, their summed cost and mean width, and how far the solver came.

    "optimal": proven;  "limit": time ran out on something better than the start;  "start kept": time ran out on nothing better.
    """

    bits: dict[str, int]
    cost: float
    mean_bits: float
    status: Status


def mean_bits(layers: Sequence[Layer], bits: Mapping[str, int]) -> float:
    """Weighted by the number of weights."""
    return sum(layer.n * bits[layer.path] for layer in layers) / sum(layer.n for layer in layers)


def total(layers: Sequence[Layer], bits: Mapping[str, int]) -> float:
    """The summed cost."""
    return sum(layer.costs[bits[layer.path]] for layer in layers)


def chosen(layers: Sequence[Layer], budget: float) -> Choice:
    """minimise Σ c_ℓb x_ℓb  with  Σ_b x_ℓb = 1 for every ℓ  and  Σ n_ℓ b x_ℓb ≤ B Σ n_ℓ.

    Never worse than the cheapest width that all may have within the budget. pulp's `status` says "Optimal" after a time-out as
    well; `sol_status` tells the two apart. SpecError where no choice is within the budget, MachineError without a solver.
    """
    least = {layer.path: min(layer.costs) for layer in layers}
    if mean_bits(layers, least) > budget:
        raise SpecError(
            f"--budget {budget:g}: with the fewest bits that layers may have the mean is {mean_bits(layers, least):.2f}",
            fix="a larger budget, or fewer layers with bits of their own",
        )
    start = _best_uniform(layers, budget, least)
    model, x = _program(layers, budget)
    with tempfile.TemporaryDirectory(prefix="bits-") as folder:
        solver = find_solver(SECONDS, folder, what="--budget", fix="or leave --budget out")
        try:
            model.solve(solver)
        except pulp.PulpSolverError as error:
            raise MachineError(
                f"the mixed-integer solver {solver.name} failed: {error}",
                fix="--bits with overrides instead of --budget",
            ) from error
    proven = model.sol_status == pulp.LpSolutionOptimal
    found = start
    if proven or model.sol_status == pulp.LpSolutionIntegerFeasible:
        found = {path: max(own, key=lambda b: own[b].value() or 0.0) for path, own in x.items()}
    better = mean_bits(layers, found) <= budget + 1e-9 and total(layers, found) < total(layers, start)
    best = found if better else start
    status: Status = "optimal" if proven else "limit" if better else "start kept"
    return Choice(bits=best, cost=total(layers, best), mean_bits=mean_bits(layers, best), status=status)


def _best_uniform(layers: Sequence[Layer], budget: float, least: dict[str, int]) -> dict[str, int]:
    """The cheapest of: every layer at its fewest bits; every layer that may at one width, the others at their fewest."""
    widths = sorted({b for layer in layers for b in layer.costs})
    each = [{p.path: b if b in p.costs else least[p.path] for p in layers} for b in widths]
    within = [bits for bits in (least, *each) if mean_bits(layers, bits) <= budget]
    return min(within, key=lambda bits: total(layers, bits))


def _program(layers: Sequence[Layer], budget: float) -> tuple[Any, dict[str, dict[int, Any]]]:
    scale = LARGEST / max(*(cost for layer in layers for cost in layer.costs.values()), 1e-300)
    n = sum(layer.n for layer in layers)
    model = pulp.LpProblem("bits", pulp.LpMinimize)
    x = {
        layer.path: {b: model.add_variable(f"x{i}_{b}", cat=pulp.LpBinary) for b in layer.costs}
        for i, layer in enumerate(layers)
    }
    terms = [(x[p.path][b], scale * cost) for p in layers for b, cost in p.costs.items()]
    model += pulp.LpAffineExpression(terms)
    for own in x.values():
        model += pulp.lpSum(own.values()) == 1
    model += pulp.LpAffineExpression([(v, p.n * b / n) for p in layers for b, v in x[p.path].items()]) <= budget
    return model, x
