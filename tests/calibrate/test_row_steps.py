"""Steps over the whole row: exact gains, the best bias for what is left, and no single step left that helps."""

import pytest
import torch
from layer_rows import Rows, layer_rows, row_grid
from torch import Tensor

from erq_export.calibrate.solve import rows as by_rows_module
from erq_export.calibrate.solve.row_steps import refine_rows, without_bias
from erq_export.contract.formats.affine import Grid

RIDGE = 10.0


def start(rows: Rows, bits: int = 3) -> tuple[Tensor, Grid]:
    """Round to nearest: (q, grid)."""
    weight = rows.W[:, :-1]
    grid = row_grid(weight, bits)
    return grid.quantize(weight), grid


def loss(rows: Rows, q: Tensor, grid: Grid, bias: Tensor) -> Tensor:
    """Per row Σ‖d x̂ + β‖² + λβ², from the stored rows: (n,)."""
    error = torch.cat([grid.dequantize(q), bias[:, None]], 1) - rows.W
    return (rows.X_tilde @ error.T).square().sum(0) + RIDGE * error[:, -1].square()


def refined(rows: Rows, limit: int = 1000, bits: int = 3) -> tuple[Tensor, Tensor, Grid]:
    q, grid = start(rows, bits)
    q, bias = refine_rows(q, grid, rows.W, rows.moments.G, RIDGE, limit)
    return q, bias, grid


def test_the_loss_without_the_bias_is_the_loss_with_the_best_bias() -> None:
    rows = layer_rows()
    q, grid = start(rows)
    M, u = without_bias(rows.moments.G, RIDGE)
    d = grid.dequantize(q) - rows.W[:, :-1]
    best = rows.W[:, -1] - d @ u
    assert torch.allclose(
        ((d @ M) * d).sum(1), loss(rows, q, grid, best), rtol=1e-6
    )  # the moments were summed from float64
    for shift in (-1e-3, 1e-3):
        assert bool((loss(rows, q, grid, best + shift) > loss(rows, q, grid, best)).all())


@pytest.mark.parametrize("seed", range(3))
def test_no_single_step_is_left_that_helps(seed: int) -> None:
    rows = layer_rows(seed=seed)
    q, _, grid = refined(rows)
    M, _ = without_bias(rows.moments.G, RIDGE)
    d = grid.dequantize(q) - rows.W[:, :-1]
    now = ((d @ M) * d).sum(1)
    for j in range(q.shape[1]):
        for step in (-1, 1):
            other = q.clone()
            other[:, j] += step
            legal = (other[:, j] >= grid.qmin[:, 0]) & (other[:, j] <= grid.qmax[:, 0])
            d = grid.dequantize(other) - rows.W[:, :-1]
            assert bool((((d @ M) * d).sum(1) >= now * (1 - 1e-9))[legal].all())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_row_gets_better_and_stays_on_its_grid(bits: int) -> None:
    rows = layer_rows()
    q, grid = start(rows, bits)
    _M, u = without_bias(rows.moments.G, RIDGE)
    before = loss(rows, q, grid, rows.W[:, -1] - (grid.dequantize(q) - rows.W[:, :-1]) @ u)
    q, bias, _ = refined(rows, bits=bits)
    after = loss(rows, q, grid, bias)
    assert bool((after <= before * (1 + 1e-9)).all())
    assert float(after.sum()) < 0.9 * float(before.sum())
    assert torch.equal(q, torch.round(q))
    assert bool(((q >= grid.qmin) & (q <= grid.qmax)).all())


def test_each_step_is_one_code_of_one_column_and_the_limit_counts_them() -> None:
    rows = layer_rows()
    at_start, _ = start(rows)
    before = at_start
    for limit in range(5):
        q, _, _ = refined(rows, limit)
        assert int((q - before).abs().sum(1).max()) <= 1
        before = q
    assert torch.equal(refined(rows, 0)[0], at_start)
    assert not torch.equal(before, at_start)


def test_the_result_does_not_depend_on_how_rows_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = layer_rows(n=40)
    whole = refined(rows)[0]
    monkeypatch.setattr(by_rows_module, "LARGEST", 7)
    assert torch.equal(refined(rows)[0], whole)


def literal_steps(q: Tensor, grid: Grid, W: Tensor, M: Tensor, limit: int) -> Tensor:
    """One row: of all legal single steps the one that leaves the least loss, each loss computed from scratch."""
    s, lo, hi = float(grid.scale), float(grid.qmin), float(grid.qmax)
    q = q.clone()
    for _ in range(limit):
        d = s * q - W
        best, least = None, float(d @ M @ d)
        for j in range(len(q)):
            for step in (-1, 1):
                other = q.clone()
                other[j] += step
                d = s * other - W
                if lo <= float(other[j]) <= hi and float(d @ M @ d) < least * (1 - 1e-12):
                    best, least = other, float(d @ M @ d)
        if best is None:
            break
        q = best
    return q


@pytest.mark.parametrize("limit", [1, 4, 30])
@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_best_first_read_aloud(bits: int, limit: int) -> None:
    """Integers equal: losses of real inputs are apart by far more than a running gradient's rounding. On 2 bits many
    codes stand at an end of their grid, and rows end at different times."""
    rows = layer_rows(k=12, n=30)
    q, _, grid = refined(rows, limit, bits)
    before, _ = start(rows, bits)
    M, _ = without_bias(rows.moments.G, RIDGE)
    for i in range(len(q)):
        row = grid.map(lambda t, i=i: t[i])
        assert torch.equal(q[i], literal_steps(before[i], row, rows.W[i, :-1], M, limit))
    assert not torch.equal(q, before)


def test_a_code_stays_on_its_grid_where_rounding_left_a_negative_second_moment() -> None:
    """An input that is constant has M_jj = 0, of which float32 sums leave a little of either sign."""
    rows = layer_rows()
    q, grid = start(rows)
    G = rows.moments.G.clone()
    G[3, 3] = G[3, -1] ** 2 / (G[-1, -1] + RIDGE) - 1e-3
    assert float(without_bias(G, RIDGE)[0][3, 3]) < 0
    q, _ = refine_rows(q, grid, rows.W, G, RIDGE, 1000)
    assert bool(((q >= grid.qmin) & (q <= grid.qmax)).all())
