"""Moments are plain sums: exact where float32 is, the same however the rows arrive, and all that an error needs."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_rows import layer_rows
from torch import Tensor

from erq_export.calibrate.moments import Moments

EPS32, EPS64 = 2.0**-24, 2.0**-53
NAMES = ("G", "D", "C")


def dyadic_rows(n_rows: int = 240, k: int = 9) -> tuple[Tensor, Tensor]:
    """Multiples of 1/64 below 4: products are multiples of 2^-12, their sums stay below 2^12, so float32 is exact."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randint(-255, 256, (n_rows, k), generator=generator) / 64  # (N, k)
    return X, torch.round(X * 2) / 2


def normal_rows(n_rows: int = 500, k: int = 9) -> tuple[Tensor, Tensor]:
    X = torch.randn(n_rows, k, generator=torch.Generator().manual_seed(1)) + 1  # (N, k)
    return X, torch.round(X * 2) / 2


def summed(X: Tensor, X_hat: Tensor, sizes: list[int] | None = None, *, bias: bool = True) -> Moments:
    moments = Moments.zero(X.shape[1], bias=bias)
    sizes = sizes or [len(X)]
    for x, x_hat in zip(X.split(sizes), X_hat.split(sizes), strict=True):
        moments.add(x, x_hat)
    return moments


def by_numpy(X: Tensor, X_hat: Tensor) -> dict[str, npt.NDArray[np.float64]]:
    """G, D, C by float64 NumPy from the stored rows."""
    x, x_hat = X.double().numpy(), X_hat.double().numpy()
    x_tilde = np.hstack([x_hat, np.ones((len(x), 1))])
    return {"G": x_tilde.T @ x_tilde, "D": (x - x_hat).T @ x_tilde, "C": (x - x_hat).T @ (x - x_hat)}


@given(cuts=st.lists(st.integers(1, 239), unique=True, max_size=12))
def test_batching_does_not_matter(cuts: list[int]) -> None:
    X, X_hat = dyadic_rows()
    edges = [0, *sorted(cuts), len(X)]
    pieces = summed(X, X_hat, [b - a for a, b in itertools.pairwise(edges)])
    whole = summed(X, X_hat)
    assert pieces.n_rows == whole.n_rows == 240
    for name in NAMES:
        assert torch.equal(getattr(pieces, name), getattr(whole, name))


@pytest.mark.parametrize("size", [1, 7, 500])
def test_sums_are_those_of_float64(size: int) -> None:
    """Products are summed in float32 within a chunk: at worst (m + 1) eps of the sum of absolute products."""
    X, X_hat = normal_rows()
    moments = summed(X, X_hat, [size] * (500 // size) + ([500 % size] if 500 % size else []))
    exact, bound = by_numpy(X, X_hat), by_absolute_values(X, X_hat)
    for name in NAMES:
        error = np.abs(getattr(moments, name).numpy() - exact[name])
        assert (error <= ((size + 1) * EPS32 + 600 * EPS64) * bound[name]).all()


def by_absolute_values(X: Tensor, X_hat: Tensor) -> dict[str, npt.NDArray[np.float64]]:
    """Σ|aᵢbᵢ| of every entry: what a rounding error is relative to. x − x̂ itself is exact (Sterbenz) or 1 eps of x."""
    x, d = X_hat.double().abs().numpy(), (X - X_hat).double().abs().numpy() + EPS32
    x_tilde = np.hstack([x, np.ones((len(x), 1))])
    return {"G": x_tilde.T @ x_tilde, "D": d.T @ x_tilde, "C": d.T @ d}


def test_dyadic_sums_are_exact() -> None:
    X, X_hat = dyadic_rows()
    moments, exact = summed(X, X_hat), by_numpy(X, X_hat)
    for name in NAMES:
        assert np.array_equal(getattr(moments, name).numpy(), exact[name])


def test_halves_add_up_to_the_whole() -> None:
    X, X_hat = dyadic_rows()
    first, second, whole = summed(X[:101], X_hat[:101]), summed(X[101:], X_hat[101:]), summed(X, X_hat)
    assert first.n_rows + second.n_rows == whole.n_rows
    for name in NAMES:
        assert torch.equal(getattr(first, name) + getattr(second, name), getattr(whole, name))


def test_the_error_is_summed_from_differences_not_from_gram_matrices() -> None:
    """Inputs near 1000 with errors near 1/1000: XᵀX̃ − X̂ᵀX̃ in float32 would be off by 1000² eps, hundreds of times D."""
    generator = torch.Generator().manual_seed(2)
    X_hat = 1000 + torch.randn(400, 5, generator=generator)
    X = X_hat + 1e-3 * torch.randn(400, 5, generator=generator)
    moments, exact, bound = summed(X, X_hat), by_numpy(X, X_hat), by_absolute_values(X, X_hat)
    assert (np.abs(moments.D.numpy() - exact["D"]) <= 401 * EPS32 * bound["D"]).all()
    x_tilde = torch.cat([X_hat, torch.ones(400, 1)], 1)
    as_difference = (X.T @ x_tilde - X_hat.T @ x_tilde).double().numpy()
    assert np.abs(as_difference - exact["D"]).max() > 10 * np.abs(moments.D.numpy() - exact["D"]).max()


def test_the_ones_column_counts_rows_and_sums_inputs() -> None:
    X, X_hat = dyadic_rows()
    moments = summed(X, X_hat)
    assert float(moments.G[-1, -1]) == moments.n_rows == 240
    assert torch.equal(moments.G[-1, :-1], X_hat.double().sum(0))
    assert torch.equal(moments.D[:, -1], (X - X_hat).double().sum(0))


def test_mean_and_covariance_make_the_second_moment() -> None:
    """μμᵀ + Σ = G/N, with NumPy's biased covariance as the oracle: both are float64, a few eps of the largest entry."""
    X, X_hat = dyadic_rows()
    moments = summed(X, X_hat)
    mu, sigma = moments.mean()
    assert np.allclose(mu.numpy(), X_hat.double().numpy().mean(0), rtol=0, atol=1e-14)
    assert np.allclose(sigma.numpy(), np.cov(X_hat.double().numpy().T, bias=True), rtol=0, atol=1e-13)
    assert torch.allclose(torch.outer(mu, mu) + sigma, moments.G[:-1, :-1] / 240, rtol=0, atol=1e-14)
    assert float(mu.abs().max()) > 0.01  # else the mean would not be seen


def test_without_a_bias_there_is_no_ones_column() -> None:
    X, X_hat = dyadic_rows()
    without, with_bias = summed(X, X_hat, bias=False), summed(X, X_hat)
    assert torch.equal(without.G, with_bias.G[:-1, :-1])
    assert torch.equal(without.D, with_bias.D[:, :-1])
    with pytest.raises(ValueError, match="layers with a bias"):
        without.mean()


@pytest.mark.parametrize("seed", range(5))
def test_the_output_error_is_that_of_the_stored_rows(seed: int) -> None:
    """tr(ΔGΔᵀ) + … against outputs computed row by row; float64, 1e-10 leaves room for the sums' cancellation."""
    rows = layer_rows(seed=seed)
    W_hat = torch.round(rows.W * 4) / 4
    assert rows.moments.output_error(rows.W, W_hat) == pytest.approx(float(rows.error(W_hat)), rel=1e-10)
    assert rows.moments.output_error(rows.W, rows.W) == pytest.approx(float(rows.error(rows.W)), rel=1e-10)
    assert rows.moments.output_energy(rows.W) == pytest.approx(float(rows.outputs.square().sum()), rel=1e-10)


def test_equal_inputs_and_weights_have_no_error() -> None:
    X, _ = dyadic_rows()
    W = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert summed(X, X).output_error(W, W) == 0
