"""Aqer is the ridge regression it says it is: stationary, least squares on the stored rows, never worse than nothing."""

import pytest
import torch
from layer_rows import Rows, layer_rows
from torch import Tensor

from erq_export.calibrate.moments import Moments
from erq_export.calibrate.solve.aqer import weight_shift
from erq_export.calibrate.solve.ridge import Ridge

LAMBDAS = [0.1, 10.0, 1e3]
SEEDS = range(3)


def shift(rows: Rows, ridge: float) -> Tensor:
    moments = rows.moments
    return weight_shift(rows.W, moments.D, Ridge(moments.G, ridge))


def objective(rows: Rows, S: Tensor, ridge: float) -> Tensor:
    """Σ‖(W + S) x̃ − W [x; 1]‖² + λ‖S‖², from the rows."""
    return rows.error(rows.W + S) + ridge * S.square().sum()


@pytest.mark.parametrize("ridge", LAMBDAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_vanishes(seed: int, ridge: float) -> None:
    """By autograd on the stored rows; 1e-9 of the gradient at 0 is the condition (< 1e6) times float64's eps."""
    rows = layer_rows(seed=seed)
    at_zero, at_solution = (
        torch.autograd.functional.jacobian(lambda S: objective(rows, S, ridge), S)
        for S in (torch.zeros_like(rows.W), shift(rows, ridge))
    )
    assert float(at_solution.norm()) < 1e-9 * float(at_zero.norm())
    assert float(at_zero.norm()) > 1


@pytest.mark.parametrize("ridge", LAMBDAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_three_forms_give_one_shift(seed: int, ridge: float) -> None:
    """Ours (moments), the code's (regression of the residual), the paper's (means, λ/N):
    docs/method.md, "Aqer" and "Ridge"."""
    rows = layer_rows(seed=seed)
    n, X_tilde, eye = len(rows.X), rows.X_tilde, torch.eye(rows.W.shape[1], dtype=torch.float64)
    gram = X_tilde.T @ X_tilde
    residual = rows.outputs - X_tilde @ rows.W.T  # (N, n)
    code = torch.linalg.solve(gram + ridge * eye, X_tilde.T @ residual).T
    dx = torch.cat([rows.X_hat - rows.X, torch.zeros(n, 1, dtype=torch.float64)], 1)  # the 1 of the bias has no error
    paper = -rows.W @ (dx.T @ X_tilde / n) @ torch.linalg.inv(gram / n + ridge / n * eye)
    ours = shift(rows, ridge)
    for other in (code, paper):
        assert float((ours - other).norm()) < 1e-9 * float(ours.norm())


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_least_squares_with_the_ridge_as_extra_rows(seed: int) -> None:
    """An orthogonal factorisation that never forms a Gram matrix."""
    rows, ridge = layer_rows(seed=seed), 10.0
    K = rows.W.shape[1]
    A = torch.cat([rows.X_tilde, ridge**0.5 * torch.eye(K, dtype=torch.float64)])
    b = torch.cat([rows.outputs - rows.X_tilde @ rows.W.T, torch.zeros(K, len(rows.W), dtype=torch.float64)])
    assert torch.allclose(shift(rows, ridge), torch.linalg.lstsq(A, b).solution.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ridge", LAMBDAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_error_falls(seed: int, ridge: float) -> None:
    """Strictly, wherever the inputs have an error that is correlated with them; and so does the ridge objective."""
    rows = layer_rows(seed=seed)
    S, zero = shift(rows, ridge), torch.zeros_like(rows.W)
    assert float(objective(rows, S, ridge)) < float(objective(rows, zero, ridge))
    assert float(rows.error(rows.W + S)) < 0.95 * float(rows.error(rows.W))


def test_no_other_shift_does_better() -> None:
    rows, ridge = layer_rows(), 10.0
    S = shift(rows, ridge)
    least = float(objective(rows, S, ridge))
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 1e-3, 1.0):
        step = size * torch.randn(S.shape, dtype=torch.float64, generator=generator)
        assert float(objective(rows, S + step, ridge)) > least
        assert float(objective(rows, S - step, ridge)) > least


def test_a_growing_ridge_shrinks_the_shift_to_nothing() -> None:
    """‖S‖ ≤ ‖W₀D‖/λ, because G is positive semidefinite."""
    rows = layer_rows()
    sizes = [float(shift(rows, 10.0**e).norm()) for e in range(-1, 13)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0.1
    pull = float((rows.W[:, :-1] @ rows.moments.D).norm())
    assert 0 < sizes[-1] <= pull / 1e12


def test_exact_inputs_need_no_shift() -> None:
    rows = layer_rows()
    exact = Rows(X=rows.X, X_hat=rows.X, W=rows.W)
    assert torch.equal(shift(exact, 10.0), torch.zeros_like(rows.W))


def test_the_bias_takes_part() -> None:
    """A constant input error is a bias error: with next to no ridge it is mended exactly, by the bias column."""
    rows = layer_rows(bits=8)
    constant = Rows(X=rows.X, X_hat=rows.X + 0.25, W=rows.W)
    S = shift(constant, 1e-6)
    mended = -0.25 * rows.W[:, :-1].sum(1)
    assert float(rows.W[:, :-1].sum(1).abs().max()) > 1
    assert torch.allclose(S[:, -1], mended, rtol=1e-6)
    assert float(S[:, :-1].abs().max()) < 1e-6


def test_a_layer_without_a_bias_column() -> None:
    """K = k: every column has an error, the stationarity condition is S (G + λI) = W D."""
    rows, ridge = layer_rows(), 10.0
    moments = Moments.zero(rows.X.shape[1], bias=False)
    moments.add(rows.X, rows.X_hat)
    W = rows.W[:, :-1]
    S = weight_shift(W, moments.D, Ridge(moments.G, ridge))
    assert torch.allclose(S @ moments.G + ridge * S, W @ moments.D, rtol=1e-9, atol=1e-9)
    error = [float(((W + T) @ rows.X_hat.T - W @ rows.X.T).square().sum()) for T in (0 * S, S)]
    assert error[1] < 0.95 * error[0]
