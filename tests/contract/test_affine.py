"""The affine grid: codes are float32 division rounded half to even, and the set of points is the textbook one."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from erq_export.contract.formats.affine import (
    SMALLEST_NORMAL_HALF,
    SMALLEST_SCALE,
    Grid,
    asymmetric_grid,
    common_power,
    snap_to_half,
    snap_to_ratio,
    symmetric_grid,
)

EPS = 2.0**-24  # half a unit in the last place of float32, relative
HALF_EPS = 2.0**-11  # the same of float16

bits_of = st.integers(2, 8)
seeds = st.integers(0, 2**32 - 1)


def reals(n: int, seed: int, *, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(n, generator=torch.Generator().manual_seed(seed))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Ranges that hold 0 and ranges that do not, over ten orders of magnitude."""
    bits, width = draw(bits_of), 10.0 ** draw(st.floats(-6, 4))
    lo = width * draw(st.floats(-2, 1))
    return asymmetric_grid(torch.tensor(lo), torch.tensor(lo + width), bits)


def all_points(grid: Grid) -> Tensor:
    return grid.dequantize(torch.arange(float(grid.qmin), float(grid.qmax) + 1))


@given(grid=grids())
def test_points_of_the_grid_stay_where_they_are(grid: Grid) -> None:
    """Codes here are below 2^10, so s·q/s is off by less than 2^10 · 2 eps = 2^-13 of a step: it rounds back to q."""
    points = all_points(grid)
    assert torch.equal(grid.quantize(points), torch.arange(float(grid.qmin), float(grid.qmax) + 1))
    assert torch.equal(grid.fake_quantize(points), points)


@given(grid=grids(), seed=seeds)
def test_a_second_quantization_changes_nothing(grid: Grid, seed: int) -> None:
    x = reals(200, seed, spread=float(grid.scale) * 300)
    once = grid.fake_quantize(x)
    assert not torch.equal(once, x)
    assert torch.equal(grid.fake_quantize(once), once)


def by_division(x: Tensor, grid: Grid) -> npt.NDArray[np.float32]:
    """The oracle: NumPy's float32 division, which IEEE 754 rounds correctly, and rint, which goes to even."""
    quotient = x.numpy() / grid.scale.numpy()
    assert quotient.dtype == np.float32
    codes: npt.NDArray[np.float32] = np.clip(np.rint(quotient), grid.qmin.numpy(), grid.qmax.numpy())
    return codes


@given(grid=grids(), seed=seeds)
def test_codes_are_float32_division_rounded_half_to_even(grid: Grid, seed: int) -> None:
    steps = torch.arange(-600, 600)
    for x in (
        reals(500, seed, spread=float(grid.scale) * 200),
        (steps + 0.5) * grid.scale,  # half steps: exact quotients .5 for most, their float32 neighbours for the rest
        steps * grid.scale,
    ):
        assert np.array_equal(grid.quantize(x).numpy(), by_division(x, grid))


def test_half_steps_go_to_the_even_neighbour() -> None:
    grid = asymmetric_grid(torch.tensor(-32.0), torch.tensor(31.75), 8)  # s = 1/4: every half step is exact
    q = torch.arange(-128, 127)
    up_and_down = grid.quantize((q + 0.5) * grid.scale)
    assert torch.equal(up_and_down, torch.where(q % 2 == 0, q, q + 1).float())


def test_division_is_not_multiplication_by_the_reciprocal() -> None:
    """What the oracle guards against: at half steps the reciprocal's rounding decides otherwise."""
    grid = asymmetric_grid(torch.tensor(-0.7), torch.tensor(0.8), 8)
    x = (torch.arange(-100, 100) + 0.5) * grid.scale
    reciprocal = torch.clamp(torch.round(x * (1 / grid.scale)), grid.qmin, grid.qmax)
    assert not torch.equal(reciprocal, grid.quantize(x))


@given(bits=bits_of, lo=st.floats(-50, 50), width=st.floats(0.01, 100), seed=seeds)
@example(bits=4, lo=0.0, width=1.5, seed=0)
@example(bits=8, lo=-1.0, width=1.0, seed=0)
def test_the_shifted_grid_is_the_textbook_form(bits: int, lo: float, width: float, seed: int) -> None:
    """Codes c = clip(round(x/s) + z, 0, 2^b − 1) and x̂ = (c − z)·s: the same numbers, bit for bit (integers < 2^24)."""
    low, high = torch.tensor(lo), torch.tensor(lo + width)
    grid = asymmetric_grid(low, high, bits)
    x = reals(500, seed, spread=3 * width) + lo
    s = (high - low) / (2**bits - 1)
    z = torch.round(-low / s)
    c = torch.clamp(torch.round(x / s) + z, 0, 2**bits - 1)
    assert torch.equal(grid.scale, s)
    assert torch.equal(grid.quantize(x) + z, c)
    assert torch.equal(grid.fake_quantize(x), (c - z) * s)


@given(grid=grids(), seed=seeds)
def test_nearest_is_nearest_among_all_points(grid: Grid, seed: int) -> None:
    """Against brute force in float64; a tie or a rounded quotient may pick the other side by 2^10 eps of a step."""
    x = reals(300, seed, spread=float(grid.scale) * 100)
    distances = (x.double()[:, None] - all_points(grid).double()).abs()
    found = (grid.fake_quantize(x).double() - x.double()).abs()
    slack = float(grid.scale) * 2**10 * 4 * EPS
    assert bool((found <= distances.min(1).values + slack).all())


@given(grid=grids(), seed=seeds)
def test_floor_and_ceil_enclose_the_nearest_by_one_step(grid: Grid, seed: int) -> None:
    x = reals(300, seed, spread=float(grid.scale) * 50)
    down, up, near = grid.codes_around(x)
    assert torch.equal(near, grid.quantize(x))
    assert bool(((down <= near) & (near <= up)).all())
    steps = x / grid.scale
    inside = (steps > grid.qmin) & (steps < grid.qmax) & (steps != torch.round(steps))
    assert torch.equal((up - down)[inside], torch.ones(int(inside.sum())))
    assert bool((up == down)[~inside].all())


@given(bits=bits_of, lo=st.floats(-50, 50), width=st.floats(0.01, 100), seed=seeds)
def test_inside_the_range_the_error_is_half_a_step(bits: int, lo: float, width: float, seed: int) -> None:
    """The zero point's rounding moves the grid by up to half a step, so the very ends may be off by a whole one."""
    grid = asymmetric_grid(torch.tensor(lo), torch.tensor(lo + width), bits)
    x = torch.rand(500, generator=torch.Generator().manual_seed(seed)) * width + lo
    error = (grid.fake_quantize(x) - x).abs() / grid.scale
    slack = (abs(lo) + width) / float(grid.scale) * 4 * EPS  # x, x/s and s·q are each rounded once
    middle = (x > lo + grid.scale / 2) & (x < lo + width - grid.scale / 2)
    assert float(error.max()) <= 1 + slack
    assert float((error * middle).max()) <= 0.5 + slack


@given(bits=bits_of, lo=st.floats(-50, 0), hi=st.floats(0.01, 50))
def test_a_range_around_zero_keeps_zero_and_fits_the_containers(bits: int, lo: float, hi: float) -> None:
    grid = asymmetric_grid(torch.tensor(lo), torch.tensor(hi), bits)
    assert grid.qmin <= 0 <= grid.qmax
    assert float(grid.qmax - grid.qmin) == 2**bits - 1
    assert float(grid.fake_quantize(torch.tensor(0.0))) == 0


def test_a_range_of_width_zero_is_represented() -> None:
    """A dead channel: the smallest scale still reaches its one value, to float32's relative precision."""
    for value in (0.0, 0.7, -3.0):
        grid = asymmetric_grid(torch.tensor(value), torch.tensor(value), 4)
        assert float(grid.scale) == pytest.approx(SMALLEST_SCALE)
        assert float(grid.fake_quantize(torch.tensor(value))) == pytest.approx(value, rel=4 * EPS)


@given(bits=bits_of, lo=st.floats(-50, 50), hi=st.floats(-50, 50))
def test_the_symmetric_grid_is_centred_and_reaches_the_larger_end(bits: int, lo: float, hi: float) -> None:
    largest = max(abs(lo), abs(hi), 1e-3)
    grid = symmetric_grid(torch.tensor(lo), torch.tensor(largest), bits)
    assert (float(grid.qmin), float(grid.qmax)) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert float(grid.scale * grid.qmax) == pytest.approx(largest, rel=2 * EPS)


@given(scale=st.floats(2.0**-13, 6e4, width=32))
@example(scale=0.1)
def test_a_scale_snapped_to_half_is_the_nearest_float16(scale: float) -> None:
    snapped = snap_to_half(torch.tensor(scale))
    half = np.float16(snapped.item())
    assert float(half) == float(snapped)
    around = [float(np.nextafter(half, np.float16(end))) for end in (0, math.inf)]
    assert all(abs(float(snapped) - scale) <= abs(other - scale) for other in around)
    assert abs(float(snapped) - scale) <= HALF_EPS * scale
    assert torch.equal(snap_to_half(snapped), snapped)


def test_snapping_moves_what_float16_does_not_hold() -> None:
    assert float(snap_to_half(torch.tensor(0.1))) != float(torch.tensor(0.1))
    assert float(snap_to_half(torch.tensor(1e-9))) == SMALLEST_NORMAL_HALF


@given(seed=seeds, exponent=st.integers(-20, 10))
def test_a_ratio_and_a_power_of_two_make_the_scale_exactly(seed: int, exponent: int) -> None:
    scale = 2.0**exponent * torch.exp(reals(40, seed, spread=2))
    s0 = common_power(scale)
    mantissa, _ = math.frexp(float(s0))
    assert mantissa == 0.5  # a power of two
    assert 0.5 < float(scale.max() / s0) <= 1  # and the least one that is not below
    snapped = snap_to_ratio(scale, s0)
    ratio = snapped.double() / s0.double()
    assert torch.equal(ratio.half().double(), ratio)
    assert float(ratio.max()) <= 1
    assert float(ratio.min()) >= SMALLEST_NORMAL_HALF
    regular = scale / s0 > SMALLEST_NORMAL_HALF
    assert bool(((snapped - scale).abs()[regular] <= HALF_EPS * scale[regular]).all())
    assert not torch.equal(snapped, scale)


@pytest.mark.parametrize("exponent", range(-24, 16))
def test_the_common_power_of_a_power_of_two_is_itself(exponent: int) -> None:
    assert float(common_power(torch.tensor([2.0**exponent, 1e-12]))) == 2.0**exponent


def test_zero_points_are_made_from_the_snapped_scale() -> None:
    """Snapped after z was computed, the grid would end up to a step away from the range."""
    lo, hi = torch.tensor(-9.99), torch.tensor(0.02)
    grid = asymmetric_grid(lo, hi, 8, snap=lambda s: 0.9 * s)
    assert float(grid.qmin) == float(torch.round(lo / (0.9 * ((hi - lo) / 255))))
