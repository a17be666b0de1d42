"""Wqer: every weight ends on its grid, the rest absorbs what it can, and each round is the regression it says it is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_rows import Rows, layer_rows, row_grid
from torch import Tensor

from erq_export.calibrate.solve.ridge import Ridge
from erq_export.calibrate.solve.rounding import REFINEMENTS
from erq_export.calibrate.solve.wqer import halves, quantize_columns
from erq_export.contract.formats.affine import Grid

RIDGE = 10.0
SEEDS = range(3)


def grid_of(rows: Rows, bits: int = 3) -> Grid:
    return row_grid(rows.W[:, :-1], bits)


def solved(rows: Rows, *, refinement: str = "flip", bits: int = 3, ridge: float = RIDGE) -> Tensor:
    moments = rows.moments
    return quantize_columns(
        rows.W,
        moments.G,
        moments.n_rows,
        grid_of(rows, bits),
        Ridge(moments.G, ridge),
        k=rows.X.shape[1],
        refine=REFINEMENTS[refinement],
        limit=100,
    )


def nearest(rows: Rows, bits: int = 3) -> Tensor:
    return torch.cat([grid_of(rows, bits).fake_quantize(rows.W[:, :-1]), rows.W[:, -1:]], 1)


def weight_error(rows: Rows, W: Tensor) -> Tensor:
    """Σ‖(Ŵ − W) x̃‖² per output: what Wqer minimises, the input error being someone else's. Shape (n,)."""
    return ((W - rows.W) @ rows.X_tilde.T).square().sum(1)


def test_split_sizes() -> None:
    """As listed in docs/method.md, "Wqer", for 384 inputs with and without a bias column."""
    with_bias = [(192, 193), (96, 97), (48, 49), (24, 25), (12, 13), (6, 7), (3, 4), (2, 2), (1, 1)]
    without = [(192, 192), (96, 96), (48, 48), (24, 24), (12, 12), (6, 6), (3, 3), (1, 2), (1, 1)]
    for n_columns, sizes in ((385, with_bias), (384, without)):
        assert [(S.stop - S.start, R.stop - R.start) for S, R in halves(n_columns)] == sizes


@given(n_columns=st.integers(1, 5000))
def test_rounds_take_every_column_but_the_last_once_and_in_order(n_columns: int) -> None:
    rounds = list(halves(n_columns))
    taken = [j for S, _ in rounds for j in range(S.start, S.stop)]
    assert taken == list(range(n_columns - 1))
    assert all(S.stop == R.start and R.stop == n_columns for S, R in rounds)
    assert len(rounds) <= n_columns.bit_length()


@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_all_weights_end_on_their_grid_and_the_bias_does_not(refinement: str, bits: int) -> None:
    """float64 q·s: x/s is q to 2 eps, so quantizing again gives back the very number."""
    rows = layer_rows()
    before = rows.W.clone()
    W, grid = solved(rows, refinement=refinement, bits=bits), grid_of(rows, bits)
    assert torch.equal(grid.fake_quantize(W[:, :-1]), W[:, :-1])
    codes = grid.quantize(W[:, :-1])
    assert bool(((codes >= grid.qmin) & (codes <= grid.qmax)).all())
    assert not torch.equal(grid.fake_quantize(W[:, -1:]), W[:, -1:])
    assert bool((W[:, -1] != rows.W[:, -1]).all())
    assert torch.equal(rows.W, before)


@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_loss_is_below_round_to_nearest(seed: int, refinement: str) -> None:
    """Without refinement the ridge alone must do it: on correlated inputs, at most two thirds are left."""
    rows = layer_rows(seed=seed)
    before, after = (weight_error(rows, W).sum() for W in (nearest(rows), solved(rows, refinement=refinement)))
    assert 0 < float(after) < 0.67 * float(before)


@pytest.mark.parametrize("seed", SEEDS)
def test_refinement_alone_helps_too(seed: int) -> None:
    """A ridge without end forbids compensation. Each half is then rounded better than nearest on its own, and so are
    all together, though halves do not see each other and a single row may lose."""
    rows = layer_rows(seed=seed)
    stiff = solved(rows, ridge=1e15)
    assert torch.allclose(stiff[:, -1], rows.W[:, -1], rtol=0, atol=1e-8)
    before, after = weight_error(rows, nearest(rows)), weight_error(rows, stiff)
    assert float(after.sum()) < 0.9 * float(before.sum())


def by_direct_solves(rows: Rows, *, refinement: str, bits: int = 3) -> Tensor:
    """Section 8.1 read aloud: stored rows instead of moments, a fresh inverse for every output row and round."""
    W, grid, n_rows = rows.W.clone(), grid_of(rows, bits), len(rows.X)
    n_columns, m = W.shape[1], 0
    while n_columns - m > 1:
        h = (n_columns - m) // 2
        x_S, x_R = rows.X_tilde[:, m : m + h], rows.X_tilde[:, m + h :]  # (N, h), (N, r)
        for i in range(len(W)):
            row = Grid(scale=grid.scale[i : i + 1], qmin=grid.qmin[i : i + 1], qmax=grid.qmax[i : i + 1])
            w_S = W[i : i + 1, m : m + h].clone()
            W[i, m : m + h] = REFINEMENTS[refinement](w_S, row, x_S.T @ x_S / n_rows, 100)
            d = W[i, m : m + h] - w_S[0]
            ridge = RIDGE / n_rows * torch.eye(x_R.shape[1], dtype=torch.float64)
            W[i, m + h :] -= d @ (x_S.T @ x_R / n_rows) @ torch.linalg.inv(x_R.T @ x_R / n_rows + ridge)
        m += h
    return W


@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize("k", [3, 11, 24])
def test_it_equals_a_literal_row_loop(k: int, refinement: str) -> None:
    """Grid points must be the same points; the bias is a float that has been through as many solves as rounds."""
    rows = layer_rows(k=k, n=6)
    ours, literal = solved(rows, refinement=refinement), by_direct_solves(rows, refinement=refinement)
    assert torch.equal(ours[:, :-1], literal[:, :-1])
    assert torch.allclose(ours[:, -1], literal[:, -1], rtol=1e-9, atol=1e-9)


def test_a_layer_without_a_bias_rounds_its_last_column() -> None:
    rows = layer_rows()
    W, k = rows.W[:, :-1], rows.X.shape[1]
    G, grid = rows.X_hat.T @ rows.X_hat, grid_of(rows)
    out = quantize_columns(W, G, len(rows.X), grid, Ridge(G, RIDGE), k=k, refine=REFINEMENTS["flip"], limit=100)
    assert torch.equal(grid.fake_quantize(out), out)
    before, after = (float(((Q - W) @ rows.X_hat.T).square().sum()) for Q in (grid.fake_quantize(W), out))
    assert after < 0.8 * before


def test_weights_that_are_on_the_grid_stay() -> None:
    rows = layer_rows()
    on_grid = Rows(X=rows.X, X_hat=rows.X_hat, W=nearest(rows))
    moments, grid = rows.moments, grid_of(rows)
    ridge = Ridge(moments.G, RIDGE)
    W = quantize_columns(
        on_grid.W, moments.G, moments.n_rows, grid, ridge, k=rows.X.shape[1], refine=REFINEMENTS["none"], limit=0
    )
    assert torch.equal(W, on_grid.W)
