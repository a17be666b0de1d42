"""The program is the row's loss, its answer is the best of all roundings, and no answer is worse than its start."""

import itertools
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pulp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_rows import layer_rows, row_grid
from torch import Tensor

from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.published import mipq as product
from erq_export.calibrate.published import solver as solvers_here
from erq_export.calibrate.published.mipq import Bits, Program, block_program, exact, linearised, mipq, row_sums, solve
from erq_export.calibrate.published.solver import find_solver
from erq_export.calibrate.solve.erq import refinement
from erq_export.calibrate.solve.ridge import Ridge
from erq_export.calibrate.solve.rounding import flip
from erq_export.calibrate.solve.wqer import quantize_columns
from erq_export.contract.errors import MachineError
from erq_export.contract.formats.affine import Grid

SECONDS = 30.0  # enough for any program here, whatever else the machine does


def case(*, h: int = 8, n: int = 4, seed: int = 0) -> tuple[Tensor, Grid, Tensor]:
    """(W, grid, M): n rows of h weights on 3 bits, and the second moment of h correlated inputs."""
    rows = layer_rows(k=h, n=n, seed=seed)
    W = rows.W[:, :h]
    return W, row_grid(W, 3), rows.X_hat.T @ rows.X_hat / len(rows.X)


def exact_loss(w: list[Fraction], rounded: list[Fraction], M: Tensor) -> Fraction:
    """d M dᵀ of one row, in rational numbers."""
    d = [q - x for q, x in zip(rounded, w, strict=True)]
    return sum((a * m * b for a, row in zip(d, exact(M), strict=True) for m, b in zip(row, d, strict=True)), Fraction())


def exact_losses(W: Tensor, rounded: Tensor, M: Tensor) -> list[Fraction]:
    return [exact_loss(w, q, M) for w, q in zip(exact(W), exact(rounded), strict=True)]


def bits_of(rounded: Tensor, W: Tensor, grid: Grid) -> list[Bits]:
    return [tuple(row) for row in (rounded == grid.neighbours(W)[1]).tolist()]


def row_programs(W: Tensor, grid: Grid, M: Tensor) -> list[Program]:
    """The program of every whole row."""
    down, up, _ = grid.neighbours(W)
    B = range(W.shape[1])
    rows = zip(exact(W), exact(down), exact(up), strict=True)
    return [block_program(w, lo, hi, (False,) * len(B), row_sums(M, B), B) for w, lo, hi in rows]


def every_rounding(h: int) -> Iterator[Bits]:
    return itertools.product([False, True], repeat=h)


@pytest.fixture(scope="module")
def solver() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        yield find_solver(SECONDS, folder)


def crooked(M: Tensor) -> Tensor:
    """Its triangles a little apart, as a matrix product may leave them."""
    return M + 1e-9 * torch.arange(M.numel(), dtype=M.dtype).reshape(M.shape)


@pytest.mark.parametrize("seed", range(3))
def test_the_program_of_a_row_is_its_loss(seed: int) -> None:
    """Not to 1e-16, as floating point would have it: equal, for every rounding."""
    W, grid, M = case(h=6, n=2, seed=seed)
    M = crooked(M)
    down, up, _ = grid.neighbours(W)
    for i, program in enumerate(row_programs(W, grid, M)):
        for bits in every_rounding(6):
            rounded = torch.where(torch.tensor(bits), up[i], down[i])
            assert program.objective(bits) == exact_loss(exact(W)[i], exact(rounded[None])[0], M)


@given(seed=st.integers(0, 20), first=st.integers(0, 6), size=st.integers(1, 6), bits=st.tuples(*[st.booleans()] * 7))
def test_a_block_of_a_row_accounts_for_every_change_of_the_loss(seed: int, first: int, size: int, bits: Bits) -> None:
    """Cross terms with the columns outside included: what a block's objective falls by, the row's loss falls by."""
    W, grid, M = case(h=7, n=1, seed=seed)
    M, B = crooked(M), range(first, min(first + size, 7))
    down, up, _ = grid.neighbours(W)
    w, lo, hi = exact(W)[0], exact(down)[0], exact(up)[0]
    program = block_program(w, lo, hi, bits, row_sums(M, B), B)

    def loss(all_bits: Bits) -> Fraction:
        return exact_loss(w, [h if t else x for t, x, h in zip(all_bits, lo, hi, strict=True)], M)

    here = bits[B.start : B.stop]
    other = tuple(not t for t in here)
    changed = (*bits[: B.start], *other, *bits[B.stop :])
    assert program.objective(other) - program.objective(here) == loss(changed) - loss(bits)


def test_the_linear_program_agrees_at_every_corner() -> None:
    """With t fixed, the y that minimise are the products t_i t_j. Solved by hand: each y at its binding bound."""
    W, grid, M = case(h=5, n=1)
    (program,) = row_programs(W, grid, M)
    model, ups = linearised(program)
    scale = Fraction(product.LARGEST) / max(abs(x) for x in (*program.linear, *program.pairs.values()))
    by_name = {v.name: v for v in model.variables()}
    for bits in every_rounding(5):
        for t, bit in zip(ups, bits, strict=True):
            t.varValue = float(bit)
        for (i, j), q in program.pairs.items():
            low, high = max(0.0, bits[i] + bits[j] - 1.0), float(min(bits[i], bits[j]))
            by_name[f"y{i}_{j}"].varValue = low if q > 0 else high
        assert model.valid(1e-9)
        value = float(scale * (program.objective(bits) - program.constant))
        assert pulp.value(model.objective) == pytest.approx(value, rel=1e-12, abs=1e-9)
        for (i, j), q in program.pairs.items():  # one step further, and a constraint breaks
            y = by_name[f"y{i}_{j}"]
            bound = y.varValue
            y.varValue = bound - 0.5 if q > 0 else bound + 0.5
            assert not model.valid(1e-9)
            y.varValue = bound


@pytest.mark.parametrize(("h", "n"), [(1, 6), (3, 6), (6, 6), (9, 4), (10, 3)])
def test_the_optimum_is_that_of_all_roundings(h: int, n: int, solver: Any) -> None:
    """CBC stops within 1e-7 of the largest coefficient. Against an oracle in float64, so 1e-12 more."""
    W, grid, M = (t if isinstance(t, Grid) else t[..., :h] for t in case(h=max(h, 3), n=n))
    M = M[:h]
    down, up, _ = grid.neighbours(W)
    choices = torch.tensor(list(every_rounding(h)))  # (2^h, h)
    n_better_than_start = 0
    for i, (program, start) in enumerate(
        zip(row_programs(W, grid, M), bits_of(flip(W, grid, M, 100), W, grid), strict=True)
    ):
        d = torch.where(choices, up[i], down[i]) - W[i]
        optimum = float(((d @ M) * d).sum(1).min())
        answer = solve(program, start, solver)
        size = float(max(abs(x) for x in (*program.linear, *program.pairs.values())))
        assert answer.status == "optimal"
        assert abs(float(answer.objective) - optimum) <= 1e-7 * size + 1e-12
        assert answer.objective == program.objective(answer.bits) <= program.objective(start)
        n_better_than_start += answer.bits != start
    assert h < 9 or n_better_than_start  # where flip is already there, nothing would show the solver at work


def test_a_time_out_is_told_from_an_optimum(tmp_path: Path) -> None:
    """pulp says status "Optimal" after it (the trap of docs/method.md, "MIPQ"); we do not, and never pass the start."""
    W, grid, M = case(h=20, n=1)
    (program,), (start,) = row_programs(W, grid, M), bits_of(flip(W, grid, M, 0), W, grid)
    hurried = find_solver(0.3, str(tmp_path))
    answer = solve(program, start, hurried)
    assert answer.status in ("limit", "start kept")
    assert answer.objective == program.objective(answer.bits) <= program.objective(start)
    assert (answer.status == "limit") == (answer.objective < program.objective(start))
    assert list(tmp_path.iterdir()) == []


class Says:
    """A solver that says what it is told to."""

    name = "says"

    def __init__(self, status: int, sol_status: int, values: list[float | None]) -> None:
        self.says, self.values = (status, sol_status), values

    def actualSolve(self, model: Any) -> int:
        for v in model.variables():
            v.varValue = self.values[int(v.name[1:])] if v.name[0] == "t" else 0.0
        model.assignStatus(*self.says)
        return self.says[0]


def toy() -> Program:
    """t₁ + t₂ + t₃ − 3 t₁ t₂: best at (1, 1, 0), −1."""
    return Program(constant=Fraction(0), linear=(Fraction(1),) * 3, pairs={(0, 1): Fraction(-3)})


NOTHING, BEST, WORST = (False, False, False), (True, True, False), (True, False, True)


@pytest.mark.parametrize(
    ("sol_status", "values", "start", "bits", "status"),
    [
        (pulp.LpSolutionOptimal, BEST, NOTHING, BEST, "optimal"),
        (pulp.LpSolutionOptimal, BEST, BEST, BEST, "optimal"),
        (pulp.LpSolutionIntegerFeasible, BEST, NOTHING, BEST, "limit"),
        (pulp.LpSolutionIntegerFeasible, WORST, NOTHING, NOTHING, "start kept"),
        (pulp.LpSolutionNoSolutionFound, BEST, NOTHING, NOTHING, "start kept"),  # values of a relaxation
        (pulp.LpSolutionIntegerFeasible, (None,) * 3, NOTHING, NOTHING, "start kept"),  # HiGHS without a solution
    ],
)
def test_what_is_made_of_an_answer(sol_status: int, values: Any, start: Bits, bits: Bits, status: str) -> None:
    said = Says(pulp.LpStatusOptimal, sol_status, [None if v is None else float(v) for v in values])
    answer = solve(toy(), start, said)
    assert (answer.bits, answer.status, answer.objective) == (bits, status, toy().objective(bits))


def test_entries_for_themselves_need_no_solver() -> None:
    program = Program(constant=Fraction(2), linear=(Fraction(-1), Fraction(1), Fraction(0)), pairs={})
    for last in (False, True):
        answer = solve(program, (False, True, last), None)
        assert answer == product.Answer(bits=(True, False, last), objective=Fraction(1), status="optimal")


@pytest.mark.parametrize("columns", [3, 8])
def test_a_layer_is_never_worse_than_its_start_and_its_blocks_are_optimal(columns: int) -> None:
    """In exact arithmetic, row by row; no block of the last one's can then do better with the others fixed."""
    W, grid, M = case(h=8, n=8)
    start, rounded = flip(W, grid, M, 100), mipq(W, grid, M, 100, columns=columns, seconds=SECONDS)
    before, after = exact_losses(W, start, M), exact_losses(W, rounded, M)
    assert all(a <= b for a, b in zip(after, before, strict=True))
    assert sum(after) < sum(before)
    assert torch.equal(grid.fake_quantize(rounded), rounded)
    down, up, _ = grid.neighbours(W)
    last = range((8 - 1) // columns * columns, 8)
    for choice in every_rounding(len(last)):
        other = rounded.clone()
        other[:, last.start :] = torch.where(torch.tensor(choice), up[:, last.start :], down[:, last.start :])
        # 1e-7 of CBC, of losses and coefficients up to 10
        assert all(b >= a - Fraction(1e-6) for a, b in zip(after, exact_losses(W, other, M), strict=True))


def test_what_cannot_flip_stays() -> None:
    """Weights beyond the grid have one neighbour: their variables stand in no objective."""
    W, grid, M = case(h=6, n=4)
    W = W.clone()
    W[:, 2] = 100.0
    rounded = mipq(W, grid, M, 100, columns=6, seconds=SECONDS)
    assert torch.equal(rounded[:, 2], (grid.scale.double() * grid.qmax)[:, 0])
    on_grid = grid.fake_quantize(W)
    assert torch.equal(mipq(on_grid, grid, M, 100, columns=6, seconds=SECONDS), on_grid)


def test_a_layer_end_to_end(capfd: pytest.CaptureFixture[str]) -> None:
    """As the options wire it: in every half the loss is no more than flip's, and nothing is written anywhere."""
    rows = layer_rows(k=9, n=3)
    moments, grid = rows.moments, row_grid(rows.W[:, :-1], 3)
    options = ErqOptions(rounding="mipq", mipq_columns=5, mipq_seconds=SECONDS)
    rule, losses = refinement(options), []

    def watched(W: Tensor, grid: Grid, M: Tensor, limit: int) -> Tensor:
        rounded, start = rule(W, grid, M, limit), flip(W, grid, M, limit)
        losses.extend(zip(exact_losses(W, rounded, M), exact_losses(W, start, M), strict=True))
        return rounded

    args: dict[str, Any] = {"k": 9, "limit": options.flips}
    W = quantize_columns(rows.W, moments.G, moments.n_rows, grid, Ridge(moments.G, 10.0), refine=watched, **args)
    assert torch.equal(grid.fake_quantize(W[:, :-1]), W[:, :-1])
    assert len(losses) == 3 * 4  # of 5, 2, 1 and 1 columns
    assert all(found <= start for found, start in losses)
    assert capfd.readouterr() == ("", "")


def test_the_same_program_twice_is_the_same_answer() -> None:
    W, grid, M = case(h=8, n=3)
    once, again = (mipq(W, grid, M, 0, columns=8, seconds=SECONDS) for _ in range(2))
    assert torch.equal(once, again)


def test_no_solver_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    W, grid, M = case()
    for solvers in ((), ("GUROBI_CMD", "no such solver")):
        monkeypatch.setattr(solvers_here, "SOLVERS", solvers)
        with pytest.raises(MachineError, match="neither CBC nor HiGHS") as caught:
            mipq(W, grid, M, 100, columns=8, seconds=SECONDS)
        assert "-O rounding=flip" in caught.value.fix
        assert caught.value.exit_code == 3


def test_a_solver_that_breaks_is_an_error_with_a_way_out() -> None:
    class Breaks(Says):
        def actualSolve(self, model: Any) -> int:
            raise pulp.PulpSolverError("no licence")

    with pytest.raises(MachineError, match="no licence"):
        solve(toy(), NOTHING, Breaks(1, 1, [0.0]))
