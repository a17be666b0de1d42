"""Rows in pieces, side by side, and the compiled descents: the same integers as one thread and tensors would find."""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numba
import pytest
import torch
from layer_problem import problem
from layer_problem import solved as solved_by
from layer_rows import layer_rows
from torch import Tensor

from erq_export.calibrate.solve import rows as rows_module
from erq_export.calibrate.solve.problem import Solution
from erq_export.calibrate.solve.rounding import flip
from erq_export.calibrate.solve.row_steps import refine_rows
from erq_export.calibrate.solve.rows import LARGEST, SMALLEST, by_rows, kernels
from erq_export.contract.formats.affine import Grid

N = 2 * SMALLEST + 5  # two pieces and a short one


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where numba cannot be imported."""
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "erq_export.calibrate.solve.compiled", raising=False)
    rows_module._compiled.cache_clear()
    assert kernels(torch.zeros(1)) is None
    monkeypatch.setattr(rows_module, "_compiled", lambda: None)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    rows_module._compiled.cache_clear()


def test_pieces_come_in_order_on_one_thread_each(threads: None) -> None:
    torch.set_num_threads(3)
    found = by_rows(lambda rows: (rows, torch.get_num_threads()), torch.zeros(N, 4))
    first, second = SMALLEST, 2 * SMALLEST
    assert [rows for rows, _ in found] == [slice(0, first), slice(first, second), slice(second, N)]
    assert [n for _, n in found] == [1, 1, 1]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(1, [1]), (SMALLEST, [SMALLEST]), (1000, [250] * 4), (2 * 4 * LARGEST, [LARGEST] * 8)],
)
def test_pieces_are_quarters_within_limits(n: int, sizes: list[int]) -> None:
    assert sizes_in_pieces(n) == sizes


def test_an_error_in_a_piece_is_the_caller_s() -> None:
    def work(rows: slice) -> int:
        return 1 // (rows.start - SMALLEST)

    with pytest.raises(ZeroDivisionError):
        by_rows(work, torch.zeros(N, 4))
    assert by_rows(lambda rows: rows.start, torch.zeros(3, 4)) == [0]


def test_a_forked_process_has_threads_of_its_own() -> None:
    by_rows(lambda rows: None, torch.zeros(3, 1))
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert pool.submit(sizes_in_pieces, 3).result(timeout=60) == [3]


def sizes_in_pieces(n: int) -> list[int]:
    return by_rows(lambda rows: rows.stop - rows.start, torch.zeros(n, 1))


def solved(n_threads: int) -> Solution:
    torch.set_num_threads(n_threads)
    return solved_by("erq", problem(layer_rows(n=N), targets=("onnx", "tensorrt")), ridge=100.0)


def test_the_number_of_threads_changes_no_bit(threads: None) -> None:
    one, three = solved(1), solved(3)
    for name in ("q", "bias"):
        assert torch.equal(getattr(one, name), getattr(three, name))
    for name in ("scale", "qmin", "qmax"):
        assert torch.equal(getattr(one.grid, name), getattr(three.grid, name))


def exact_case(bits: int = 3) -> tuple[Tensor, Grid, Tensor, Tensor]:
    """(W, grid, M, G): small multiples of powers of two, so that no sum rounds, in whatever order it is taken."""
    generator = torch.Generator().manual_seed(bits)
    W = torch.randint(-511, 512, (N, 13), generator=generator).double() / 128
    A = torch.randint(-3, 4, (13, 13), generator=generator).double()
    G = A @ A.T + 4 * torch.eye(13)
    G[-1, :-1] = G[:-1, -1] = 0  # no mean: the bias takes no quotient
    scale = torch.full((N, 1), 0.5)
    qmin = torch.full((N, 1), -(2.0 ** (bits - 1)))
    return W, Grid(scale=scale, qmin=qmin, qmax=qmin + 2**bits - 1), G[:-1, :-1], G


def descents(bits: int, limit: int) -> list[Tensor]:
    W, grid, M, G = exact_case(bits)
    q = grid.quantize(W[:, :-1])
    return [flip(W[:, :-1], grid, M, limit), *refine_rows(q, grid, W, G, 0.0, limit)]


CASES = [(bits, limit) for bits in (2, 3, 8) for limit in (0, 1, 5, 1000)]
COMPILED = {case: descents(*case) for case in CASES}


@pytest.mark.parametrize(("bits", "limit"), CASES)
def test_compiled_and_with_tensors_the_descents_are_the_same(tensors_alone: None, bits: int, limit: int) -> None:
    for compiled, expected in zip(COMPILED[bits, limit], descents(bits, limit), strict=True):
        assert torch.equal(compiled, expected)


def test_the_order_in_memory_changes_nothing() -> None:
    """Also of weights and integers that lie column by column: what the descents change in place is no copy."""
    W, grid, M, G = exact_case()
    q, by_column = grid.quantize(W[:, :-1]), W.T.contiguous().T
    assert torch.equal(flip(by_column[:, :-1], grid, M, 1000), COMPILED[3, 1000][0])
    q_steps, bias = refine_rows(q.T.contiguous().T, grid, by_column, G, 0.0, 1000)
    assert torch.equal(q_steps, COMPILED[3, 1000][1])
    assert torch.equal(bias, COMPILED[3, 1000][2])
    assert not torch.equal(q_steps, q)


def test_a_sweep_is_counted_for_every_flip_and_for_the_look_that_finds_none() -> None:
    """What the benchmark counts as work: x₁ = x₂ takes one flip in the first row, none in the second."""
    compiled = kernels(torch.zeros(1))
    assert compiled is not None
    c = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    g = torch.tensor([[-1.0, -2.0], [1.0, 1.0]], dtype=torch.float64)
    M, is_up = torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.bool)
    args: list[Any] = [t.numpy() for t in (c, g, M.diagonal().contiguous(), M, is_up)]
    assert compiled.flip_rows(*args, 0) == 0
    assert not is_up.any()
    n_sweeps = compiled.flip_rows(*args, 100)
    assert n_sweeps == int(is_up.sum()) + 2
    assert is_up[0, 1]
    assert not is_up[1].any()


def test_kernels_are_compiled_again_where_nothing_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba says so with a RuntimeError: a read-only installation, a user without a home."""
    from erq_export.calibrate.solve.compiled import compiled

    njit = numba.njit

    def read_only(*, cache: bool = False, **words: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**words)

    monkeypatch.setattr(numba, "njit", read_only)

    @compiled
    def three() -> int:
        return 3

    assert three() == 3
