"""A layer with more inputs than rows: the same solution from the rows as from their sums."""

from functools import partial

import pytest
import torch
from asked import asked
from torch import Tensor

from erq_export.calibrate.halves import HalvedMoments
from erq_export.calibrate.moments import Moments
from erq_export.calibrate.setting import Setting
from erq_export.calibrate.solve.problem import Problem
from erq_export.calibrate.solve.ridge import Ridge
from erq_export.calibrate.solve.wide_ridge import WideRidge, shift_of
from erq_export.calibrate.solve.wqer import halves
from erq_export.calibrate.wide import WideHalves, WideMoments
from erq_export.contract.targets import grid_rules

N, K, OUTPUTS = 24, 161, 24  # two images have fewer rows than `most_rows`
TARGETS = ("onnx", "tensorrt-rtx")


def rows(n: int = N, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x and x̂ (n, k), correlated as behind a ReLU."""
    chance = torch.Generator().manual_seed(seed)
    x = (torch.randn(n, 30, generator=chance) @ torch.randn(30, K - 1, generator=chance)).relu()
    step = x.max() / 15
    return x, (x / step).round() * step


def both(n: int = N) -> tuple[Moments, WideMoments]:
    x, x_hat = rows(n)
    return Moments.of(x, x_hat), WideMoments(x_hat=x_hat, e=x - x_hat)


def exact(wide: WideMoments) -> Moments:
    """The same rows' sums in float64."""
    X, E = wide.X, wide.e.double()
    return Moments(G=X.T @ X, D=E.T @ X, C=E.T @ E, n_rows=wide.n_rows, bias=True)


def weight() -> Tensor:
    return torch.randn(OUTPUTS, K, generator=torch.Generator().manual_seed(5)).double()


@pytest.mark.parametrize("ridge", [10.0, 1e3])
def test_both_forms_shift_and_absorb_alike(ridge: float) -> None:
    """Sums of float32 products differ from float64's by 1e-7 of the largest, and 1/λ of that is what they may move."""
    moments, wide = both()
    primal, dual = Ridge(wide.G, ridge), WideRidge(wide.X, ridge)
    W = weight()
    exact = W[:, :-1] @ wide.e.double().T @ wide.X
    assert torch.allclose(dual.shift(W[:, :-1], wide.e), primal.solve(exact), rtol=1e-8, atol=1e-10)
    for S, R in halves(K):
        d = W[:, S]
        assert torch.allclose(dual.absorb(d, S, R), primal.absorb(d, S, R), rtol=1e-8, atol=1e-9), (S, R)
    assert torch.allclose(shift_of(W, wide, dual), shift_of(W, moments, Ridge(moments.G, ridge)), rtol=0, atol=1e-4)


def test_they_measure_the_same_errors() -> None:
    moments, wide = both()
    W = weight()
    others = [torch.zeros_like(W), W, W + 0.01 * W.flip(0)]
    assert wide.output_errors(W, others) == pytest.approx(moments.output_errors(W, others), rel=1e-5)
    assert torch.allclose(wide.G, moments.G, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("method", ["rtn", "gptq", "erq"])
@pytest.mark.parametrize("n_images", [1, 2])
def test_a_layer_is_solved_to_the_same_integers_in_either_form(method: str, n_images: int) -> None:
    setting, W, kept = Setting.of(asked("w4a4", TARGETS, method=method)), weight(), WideHalves(K - 1)
    for i in range(n_images):
        kept.add(*rows(seed=i), 1.0 - i % 2)
    whole, halves = kept.whole, kept.halves
    assert isinstance(whole, WideMoments)
    sums = None if halves is None else tuple(exact(half) for half in halves)  # type: ignore[arg-type]
    problem = partial(Problem, weight=W[:, :-1], bias=W[:, -1], role="fc", w_bits=4, rules=grid_rules(TARGETS))
    found = setting.solve(problem(moments=whole, halves=halves))
    wanted = setting.solve(problem(moments=exact(whole), halves=sums))  # type: ignore[arg-type]
    assert found.ridge == wanted.ridge
    assert torch.equal(found.q, wanted.q)
    assert torch.allclose(found.bias, wanted.bias, rtol=0, atol=1e-9)


def test_more_rows_than_inputs_become_sums() -> None:
    kept, sums = WideHalves(K - 1), HalvedMoments.zero(K - 1)
    for i in range(6):
        x, x_hat = rows(seed=i)
        kept.add(x, x_hat, 1.0 - i % 2)
        sums.add(x, x_hat, 1.0 - i % 2)
    assert isinstance(kept.whole, Moments)
    assert kept.whole.n_rows == sums.whole.n_rows == 6 * N
    assert torch.allclose(kept.whole.G, sums.whole.G, rtol=1e-6, atol=1e-3)
    assert kept.halves is not None
    assert [half.n_rows for half in kept.halves] == [3 * N, 3 * N]
