"""The ridge chosen by halves of the images: near the best there is where that is known, and no worse than any fixed one."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from layer_problem import problem
from layer_rows import Rows
from torch import Tensor

from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.moments import Moments
from erq_export.calibrate.solve.best_ridge import CANDIDATES, FIRST, best_ridge
from erq_export.calibrate.solve.crossed import ROWS, crossed_error, of_few_rows
from erq_export.calibrate.solve.erq import solve, solve_at
from erq_export.calibrate.solve.problem import Problem
from erq_export.calibrate.solve.ridge import NotPositiveDefinite
from erq_export.contract.errors import SpecError

BEST = (1e2, 1e3, 1e4)  # of the layers below
OPTIONS = ErqOptions()
K, N_OUT = 40, 24


def known_layer(λ: float, n_rows: int, seed: int) -> Rows:
    """A layer whose best activation ridge is λ, in closed form.

    W x = W x̂ + B x̂ + ε with B ~ N(0, τ²) and ε ~ N(0, σ²): of all estimates of B from rows of x̂, the ridge with
    σ²/τ² on the sum has the least expected error (it is the mean of B given the data); so 0.1 λ = σ²/τ². x is made so
    that W gives this: W is square and regular, x = x̂ + W⁻¹ (B x̂ + ε).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    W0, _ = torch.linalg.qr(normal(K, K))
    τ = 0.02
    σ = τ * (0.1 * λ) ** 0.5
    X_hat = normal(n_rows, K)
    B, ε = τ * normal(K, K), σ * normal(n_rows, K)
    X = X_hat + (X_hat @ B.T + ε) @ W0  # W0 is orthogonal
    return Rows(X=X, X_hat=X_hat, W=torch.cat([W0, torch.zeros(K, 1, dtype=torch.float64)], 1))


def halved(rows: Rows) -> Problem:
    """The problem of all rows, with halves; 8-bit weights, so that rounding hardly has a share in it."""
    first, second = (
        Rows(X=rows.X[half], X_hat=rows.X_hat[half], W=rows.W)
        for half in (slice(0, len(rows.X) // 2), slice(len(rows.X) // 2, None))
    )
    posed = problem(rows, w_bits=8)
    return replace(posed, halves=(first.moments, second.moments))


@pytest.mark.parametrize("λ", BEST)
def test_it_finds_the_ridge_that_is_known_to_be_the_best(λ: float) -> None:
    """Within one candidate, a factor of ten, in the middle of seeds; and on fresh rows within 2 % of the best candidate."""
    chosen, lost = [], []
    for seed in range(5):
        layer = known_layer(λ, n_rows=600, seed=seed)
        rows = Rows(X=layer.X[:400], X_hat=layer.X_hat[:400], W=layer.W)
        fresh = Rows(X=layer.X[400:], X_hat=layer.X_hat[400:], W=layer.W).moments
        posed = halved(rows)
        errors = {
            at: fresh.output_error(posed.augmented, solve_at(at, posed, options=OPTIONS).augmented) for at in CANDIDATES
        }
        chosen.append(best_ridge(posed, partial(solve_at, options=OPTIONS)))
        lost.append(errors[chosen[-1]] / min(errors.values()) - 1)
    assert λ / 10 <= sorted(chosen)[2] <= λ * 10
    assert sorted(lost)[2] < 0.02


def test_an_image_alone_gets_the_papers_ridge() -> None:
    posed = replace(halved(known_layer(1e2, 100, seed=0)), halves=None)
    assert solve(posed, OPTIONS).ridge == CANDIDATES[FIRST] == 1e4
    with pytest.raises(ValueError, match="halves"):
        crossed_error(posed, partial(solve_at, 1e4, options=OPTIONS))


def test_a_ridge_below_the_rounding_of_the_sums_is_passed_over() -> None:
    """The sums' products are made in float32: of many large rows the least eigenvalue comes out below −0.1 λ. Found on the
    calibration of `shapes_cascade`."""
    posed = halved(known_layer(1.0, 100, seed=0))  # whose best ridge is the least candidate
    assert posed.halves is not None
    off = replace(posed.halves[0], G=posed.halves[0].G.clone())
    off.G[0, :], off.G[:, 0] = 0, 0
    off.G[0, 0] = -5.0  # λ = 1 and 10 add 0.1 and 1
    spoilt = replace(posed, halves=(off, posed.halves[1]))
    with pytest.raises(NotPositiveDefinite, match="a larger -O ridge") as caught:
        crossed_error(spoilt, partial(solve_at, 10.0, options=OPTIONS))
    assert caught.value.exit_code == SpecError("", fix="").exit_code
    assert solve(posed, OPTIONS).ridge < 100
    assert solve(spoilt, OPTIONS).ridge >= 100


def test_halves_may_have_a_factor_where_the_whole_has_none() -> None:
    posed = halved(known_layer(1.0, 100, seed=0))
    G = posed.moments.G.clone()
    G[0, :], G[:, 0] = 0, 0
    G[0, 0] = -5.0
    spoilt = replace(posed, moments=replace(posed.moments, G=G))
    assert solve(spoilt, OPTIONS).ridge == 100
    G[0, 0] = -1e9  # nothing helps
    with pytest.raises(NotPositiveDefinite):
        solve(spoilt, OPTIONS)


def test_a_fixed_ridge_is_taken_as_it_is() -> None:
    posed = halved(known_layer(1e2, 100, seed=0))
    assert solve(posed, ErqOptions(ridge=7.0)).ridge == 7.0


def test_a_half_is_judged_on_the_other_one() -> None:
    """Σ over both directions, each by the rows of the half that was not solved for."""
    posed = halved(known_layer(1e2, 120, seed=1))
    assert posed.halves is not None
    first, second = posed.halves
    solver = partial(solve_at, 1e2, options=OPTIONS)
    wanted = energy = 0.0
    for seen, unseen in ((first, second), (second, first)):
        solution = solver(replace(posed, moments=seen))
        wanted += unseen.output_error(posed.augmented, solution.augmented)
        energy += unseen.output_energy(posed.augmented)
    assert crossed_error(posed, solver) == pytest.approx((wanted, energy), rel=1e-9)


def test_few_rows_are_spread_over_all() -> None:
    W = torch.arange(1000.0, dtype=torch.float64)[:, None].expand(1000, 3)
    moments = Moments.zero(3, bias=True)
    posed = Problem(
        weight=W, bias=W[:, 0], moments=moments, role="fc1", w_bits=4, rules=problem(known_layer(1.0, 4, 0)).rules
    )
    few = of_few_rows(posed)
    assert len(few.weight) == ROWS
    assert few.weight[:, 0].diff().unique().tolist() == [10, 11]
    assert torch.equal(few.weight[:, 0], few.bias)
    assert len(of_few_rows(few).weight) == ROWS  # all of few enough
