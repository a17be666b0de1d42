"""The logarithmic grid against its definition, and the search for its largest point."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erq_export.calibrate.observers import Tails, groups
from erq_export.calibrate.percentiles import REPQ
from erq_export.calibrate.published.attention import log_search
from erq_export.contract.formats.logarithmic import LogGrid


def grid(delta: float = 1.0, bits: int = 4) -> LogGrid:
    return LogGrid(scale=torch.tensor(delta), bits=bits)


def literal(p: float, delta: float, bits: int) -> float:
    """docs/method.md, "Logarithmic softmax", one number at a time in double precision."""
    if p == 0:
        return 0.0
    k = round(-2 * math.log2(p / delta))
    return 0.0 if k >= 2**bits else delta * 2 ** (-min(max(k, 0), 2**bits - 1) / 2)


@given(st.floats(0, 2, width=32), st.floats(2**-7, 1, width=32), st.integers(3, 8))
def test_every_value_goes_where_the_definition_says(p: float, delta: float, bits: int) -> None:
    """float32 may fall on the other side of a rounding border: then −2 log₂(p/δ) is within 1e-4 of a half."""
    got = float(grid(delta, bits).fake_quantize(torch.tensor(p)))
    want = literal(p, delta, bits)
    if not math.isclose(got, want, rel_tol=1e-6):
        exact = -2 * math.log2(p / delta)
        assert abs(exact - math.floor(exact) - 0.5) < 1e-4


@pytest.mark.parametrize("bits", range(3, 9))
def test_codes_are_the_points_nearest_in_the_logarithm(bits: int) -> None:
    """Brute force over every point, on values off the borders; below the last border there is only 0."""
    g = grid(0.7, bits)
    k = torch.arange(2**bits)
    points = g.dequantize(k.float())
    assert torch.equal(g.quantize(points), k.float())  # and rounding twice is rounding once
    p = torch.rand(2000, generator=torch.Generator().manual_seed(0)) ** 8 * 0.9
    distance = (torch.log2(p[:, None]) - torch.log2(points)).abs()  # (2000, points)
    nearest = points[distance.argmin(1)]
    nearest[torch.log2(p) < torch.log2(points[-1]) - 0.25] = 0
    ordered = distance.sort(1).values
    clear = ordered[:, 1] - ordered[:, 0] > 1e-4
    assert clear.sum() > 1900
    assert torch.equal(g.fake_quantize(p)[clear], nearest[clear])


def test_zero_stays_zero_and_more_than_delta_is_delta() -> None:
    p = torch.tensor([0.0, 1e-45, 0.5, 0.51, 1.0, 1e30])
    assert grid(0.5).fake_quantize(p).tolist() == [0.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    assert grid(0.5).quantize(p[:1]).item() == grid().zero_code == 16


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_larger_values_have_no_smaller_points(bits: int) -> None:
    p = torch.cat([torch.zeros(1), torch.logspace(-140, 1, 20001, base=2.0)])
    p_hat = grid(1.0, bits).fake_quantize(p)
    assert bool((p_hat.diff() >= 0).all())
    assert len(p_hat.unique()) == 2**bits + 1  # 0 is one more


def test_the_form_with_ceil_is_the_same() -> None:
    """2^−⌈k/2⌉ (1 + (k mod 2)(√2 − 1)): the integer form of the papers. With ⌊k/2⌋ odd codes are twice too large."""
    k = torch.arange(16).double()
    odd = 1 + (k % 2) * (math.sqrt(2) - 1)
    points = LogGrid(scale=torch.tensor(1.0, dtype=torch.float64), bits=4).dequantize(k)
    assert torch.allclose(points, torch.exp2(-torch.ceil(k / 2)) * odd, rtol=1e-12)
    assert torch.allclose(points[1::2] * 2, (torch.exp2(-torch.floor(k / 2)) * odd)[1::2], rtol=1e-12)


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 8.0])
def test_delta_is_the_quantile_of_least_error(sharpness: float) -> None:
    """Streamed in two chunks, against NumPy's quantile on everything at once."""
    P = (sharpness * torch.randn(4, 2, 60, 60, generator=torch.Generator().manual_seed(1))).softmax(-1)
    tails = Tails.of(P.numel(), REPQ)
    for chunk in (P[:1], P[1:]):
        tails.add(groups(chunk, per_channel=False))
    search = log_search(tails, bits=4)
    for chunk in (P[:3], P[3:]):
        search.add(chunk)
    tops = [float(np.quantile(P.double().numpy(), p)) for p in REPQ]
    errors = [float((grid(top).fake_quantize(P) - P).double().square().sum()) for top in tops]
    assert float(search.best().scale) == pytest.approx(tops[errors.index(min(errors))], rel=1e-6)
    assert min(errors) < 0.999 * max(errors)


def test_where_all_quantiles_are_zero_the_largest_value_is_left() -> None:
    P = torch.zeros(1, 1, 200, 200)
    P[0, 0, 0, 0] = 0.25
    P = torch.cat([P] * 30)[:, :, :100]  # 30 values in 600 000: none of the percentiles sees one
    P[1:, 0, 0, 0] = 0
    tails = Tails.of(P.numel(), REPQ)
    tails.add(groups(P, per_channel=False))
    search = log_search(tails, bits=4)
    search.add(P)
    assert float(search.best().scale) == 0.25
