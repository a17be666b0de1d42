"""Rounding refinement as the exact mixed-integer quadratic program, solved block by block with pulp: for ablations.

Letters:  w (h,) weights of a row;  down, up (h,) their grid points;  t ∈ {0, 1}ʰ which go up;  M (h, h) second moment
          a = down − w, c = up − down, d = a + c∘t (h,);  S = M + Mᵀ (h, h);  B the columns being decided, b of them
Everything but the solver is rational: floats are rationals, so two roundings compare without a tolerance.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import pulp
import torch
from torch import Tensor

from erq_export.contract.errors import MachineError
from erq_export.contract.formats.format import Format

from ..solve.rounding import flip
from .solver import find_solver

LARGEST = 1e3  # coefficient handed to the solver: CBC's tolerances, 1e-5 to 1e-7, are absolute

Bits = tuple[bool, ...]
Exact = Sequence[Fraction]
Status = Literal["optimal", "limit", "start kept"]


@dataclass(frozen=True, kw_only=True)
class Program:
    """minimise over t:  constant + Σ_j linear_j t_j + Σ_{i<j} pairs_ij t_i t_j;  `pairs` holds what is not zero."""

    constant: Fraction
    linear: tuple[Fraction, ...]
    pairs: Mapping[tuple[int, int], Fraction]

    def objective(self, bits: Bits) -> Fraction:
        """Its exact value at t = bits."""
        linear = sum((x for x, t in zip(self.linear, bits, strict=True) if t), self.constant)
        return sum((q for (i, j), q in self.pairs.items() if bits[i] and bits[j]), linear)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The bits chosen, their exact objective, and how far the solver came.

    "optimal": proven, within the solver's tolerance; "limit": better than the start, time ran out; "start kept": time
    ran out on nothing better.
    """

    bits: Bits
    objective: Fraction
    status: Status


def block_program(w: Exact, down: Exact, up: Exact, bits: Bits, S: Sequence[Exact], B: range) -> Program:
    """The program of the columns B of one row, all others fixed at `bits`; S (b, h) holds the rows B of M + Mᵀ.

    With d_B = a + c∘t and the push of the fixed columns p_j = Σ_{i∉B} d_i S_ij, what of d M dᵀ depends on B is
        Σ_j d_j p_j + ½ Σ_ij d_i d_j S_ij  =  Σ_j a_j p_j + ½ Σ_ij a_i a_j S_ij                 constant
            + Σ_j [c_j (p_j + Σ_i a_i S_ij) + ½ c_j² S_jj] t_j + Σ_{i<j} c_i c_j S_ij t_i t_j      since t_j² = t_j
    (docs/method.md, "MIPQ"; 2M is S, which an M whose two triangles were rounded apart cannot bend.) Over a whole row
    the objective is the row's loss.
    """
    fixed = [(i, (up[i] if t else down[i]) - w[i]) for i, t in enumerate(bits) if i not in B]
    a, c = [down[j] - w[j] for j in B], [up[j] - down[j] for j in B]
    p = [sum((d * row[i] for i, d in fixed), Fraction()) for row in S]
    s = [row[B.start : B.stop] for row in S]  # (b, b)
    g = [sum((x * y for x, y in zip(a, row, strict=True)), Fraction()) for row in s]
    b = range(len(B))
    products = {(i, j): c[i] * c[j] * s[i][j] for i in b for j in b[i + 1 :]}
    return Program(
        constant=sum((a[j] * (p[j] + g[j] / 2) for j in b), Fraction()),
        linear=tuple(c[j] * (p[j] + g[j]) + c[j] ** 2 * s[j][j] / 2 for j in b),
        pairs={ij: q for ij, q in products.items() if q},
    )


def solve(program: Program, start: Bits, solver: Any) -> Answer:
    """The best rounding the solver finds in its time limit, or `start` where that is as good: never worse, exactly.

    pulp's `status` says "Optimal" after a time-out as well; `sol_status` tells the two apart, and values without a
    solution are those of a relaxation (docs/method.md, "MIPQ").
    """
    kept = program.objective(start)
    if not program.pairs:  # every entry for itself
        found, proven = tuple(t if x == 0 else x < 0 for x, t in zip(program.linear, start, strict=True)), True
    else:
        model, ups = linearised(program)
        try:
            model.solve(solver)
        except pulp.PulpSolverError as error:
            raise MachineError(
                f"the mixed-integer solver {solver.name} failed: {error}", fix="-O rounding=flip, which needs no solver"
            ) from error
        proven = model.sol_status == pulp.LpSolutionOptimal
        solved = proven or model.sol_status == pulp.LpSolutionIntegerFeasible
        values = [t.value() if solved else None for t in ups]
        found = tuple(old if value is None else value > 0.5 for value, old in zip(values, start, strict=True))
    better = (objective := program.objective(found)) < kept
    unproven: Status = "limit" if better else "start kept"
    return Answer(
        bits=found if better else start,
        objective=objective if better else kept,
        status="optimal" if proven else unproven,
    )


def linearised(program: Program) -> tuple[Any, list[Any]]:
    """The program for a linear solver, and its variables t: y_ij stands for t_i t_j, continuous in [0, 1].

    Minimisation presses y_ij to its lower end where its coefficient is positive, so y_ij ≥ t_i + t_j − 1 is all it
    needs, and to its upper end where negative: y_ij ≤ t_i, y_ij ≤ t_j (docs/method.md, "MIPQ").
    """
    coefficients = [abs(x) for x in (*program.linear, *program.pairs.values())]
    scale = Fraction(LARGEST) / max(coefficients)
    model = pulp.LpProblem("mipq", pulp.LpMinimize)
    t = [model.add_variable(f"t{j}", cat=pulp.LpBinary) for j in range(len(program.linear))]
    y = {(i, j): model.add_variable(f"y{i}_{j}", lowBound=0, upBound=1) for i, j in program.pairs}
    terms = [(v, float(scale * x)) for v, x in zip(t, program.linear, strict=True)]
    model += pulp.LpAffineExpression(terms + [(y[ij], float(scale * q)) for ij, q in program.pairs.items()])
    for (i, j), q in program.pairs.items():
        if q > 0:
            model += y[i, j] >= t[i] + t[j] - 1
        else:
            model += y[i, j] <= t[i]
            model += y[i, j] <= t[j]
    return model, t


def mipq(
    W: Tensor, grid: Format, M: Tensor, limit: int, *, columns: int, seconds: float, deadline: float | None = None
) -> Tensor:
    """Start from `flip`, then decide every row's blocks of `columns` columns by the program: rounded W (n, h).

    One sweep of block coordinate descent on the exact program: a block sees the row's other columns at their current
    choice. So a row of one block ends at its optimum, a wider row at or below the start, both in exact arithmetic.
    Bounded by n·⌈h/columns⌉ programs of `seconds` each: hours for a model of any size (docs/method.md, "MIPQ": 130 of
    them; `mipq_time` says it before the start). A program that runs out of time depends on the machine's load; the others
    give the same bits every time. MachineError where `deadline`, in seconds of time.monotonic, passes between two programs.
    """
    down, up, _ = grid.neighbours(W)
    bits: list[Bits] = [tuple(row) for row in (flip(W, grid, M, limit) == up).tolist()]
    rows = list(zip(exact(W), exact(down), exact(up), strict=True))
    with tempfile.TemporaryDirectory(prefix="mipq-") as folder:
        solver = find_solver(seconds, folder)
        for first in range(0, W.shape[1], columns):
            B = range(first, min(first + columns, W.shape[1]))
            S = row_sums(M, B)
            for i, row in enumerate(rows):
                if deadline is not None and time.monotonic() > deadline:
                    raise MachineError(
                        f"--rounding mipq ran out of time at row {i} of {len(rows)}, column {first} of {W.shape[1]}",
                        fix="more time, fewer seconds a program, or --rounding flip, which takes seconds in all",
                    )
                block = block_program(*row, bits[i], S, B)
                answer = solve(block, bits[i][B.start : B.stop], solver)
                bits[i] = (*bits[i][: B.start], *answer.bits, *bits[i][B.stop :])
    return torch.where(torch.tensor(bits, device=W.device), up, down)


def row_sums(M: Tensor, B: range) -> list[list[Fraction]]:
    """The rows B of S = M + Mᵀ, without rounding: (b, h)."""
    across, along = exact(M[B.start : B.stop]), exact(M[:, B.start : B.stop].T)
    return [[x + y for x, y in zip(p, q, strict=True)] for p, q in zip(across, along, strict=True)]


def exact(values: Tensor) -> list[list[Fraction]]:
    """Floats as the rationals they are: (n, h)."""
    return [[Fraction(x) for x in row] for row in values.tolist()]
