"""Ranges: streamed percentiles are the percentiles, and the search takes the one of least squared error."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from erq_export.calibrate.observers import Tails, activation_grid, groups, pieces, range_search
from erq_export.calibrate.percentiles import REPQ
from erq_export.calibrate.search import Search, of_rows
from erq_export.contract.formats.affine import Grid, asymmetric_grid
from erq_export.contract.targets import GridRules, grid_rules

EPS = 2.0**-24
CPU, BOTH = grid_rules(["onnx"]), grid_rules(["onnx", "tensorrt-rtx"])


def normal(rows: int, k: int, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(rows: int, k: int, *, seed: int = 0) -> Tensor:
    """Cubes of normal numbers: a grid that reaches the extremes is too coarse for the rest."""
    return normal(rows, k, seed=seed) ** 3


def streamed(values: Tensor, sizes: list[int]) -> Tails:
    tails = Tails.of(values.shape[1], REPQ)
    for piece in values.split(sizes, 1):
        tails.add(piece)
    return tails


def searched(x: Tensor, *, bits: int = 4, rules: GridRules = CPU, per_channel: bool, chunks: int = 1) -> Grid:
    tails = Tails.of(groups(x, per_channel=per_channel).shape[1], REPQ)
    for piece in x.chunk(chunks):
        tails.add(groups(piece, per_channel=per_channel))
    search = range_search(tails, bits=bits, rules=rules, per_channel=per_channel)
    for chunk in x.chunk(chunks):
        for piece in pieces(chunk, per_channel=per_channel):
            search.add(piece)
    return search.best()


def assert_quantile(found: Tensor, values: Tensor, p: float) -> None:
    """NumPy's linear interpolation in float64. Ours is done in float32: 3 roundings of numbers as large as the
    neighbours, and a position that is exact to n eps64."""
    exact: npt.NDArray[np.float64] = np.quantile(values.double().numpy(), p, axis=1)
    assert np.abs(found.double().numpy() - exact).max() <= 4 * EPS * float(values.abs().max())


@given(n=st.integers(1, 6000), seed=st.integers(0, 1000), cuts=st.lists(st.integers(1, 5999), unique=True, max_size=6))
def test_streamed_percentiles_are_the_percentiles(n: int, seed: int, cuts: list[int]) -> None:
    values = normal(3, n, seed=seed)
    edges = [0, *sorted(c for c in cuts if c < n), n]
    tails = streamed(values, [b - a for a, b in itertools.pairwise(edges)])
    for p in REPQ:
        lo, hi = tails.range(p)
        assert_quantile(lo, values, 1 - p)
        assert_quantile(hi, values, p)


def test_a_large_layer_needs_a_thousandth_of_its_values() -> None:
    """2^22 values; torch.quantile (limit 2^24) is the second oracle, in float64 so that its position is exact."""
    values = normal(1, 2**22)
    tails = streamed(values, [2**20 + 1] * 3 + [2**20 - 3])
    assert tails.top is not None
    assert tails.top.numel() == tails.keep == pytest.approx(0.001 * 2**22, abs=4)
    for p in REPQ:
        lo, hi = tails.range(p)
        exact = torch.quantile(values.double(), torch.tensor([1 - p, p], dtype=torch.float64))
        assert float((torch.cat([lo, hi]).double() - exact).abs().max()) <= 4 * EPS * float(values.abs().max())


@given(chunks=st.integers(2, 40))
def test_batching_changes_no_bit_of_a_percentile(chunks: int) -> None:
    values = normal(2, 5000)
    whole = streamed(values, [5000])
    pieces = Tails.of(5000, REPQ)
    for piece in values.chunk(chunks, 1):
        pieces.add(piece)
    for p in REPQ:
        for a, b in zip(whole.range(p), pieces.range(p), strict=True):
            assert torch.equal(a, b)


def test_nothing_added_is_a_fault() -> None:
    with pytest.raises(RuntimeError, match="no values"):
        Tails.of(10, REPQ).range(0.999)


def brute_force(values: Tensor, grids: list[Grid]) -> int:
    errors = [float((g.fake_quantize(values).double() - values.double()).square().sum()) for g in grids]
    return int(np.argmin(errors))


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("data", [normal, heavy_tailed])
def test_the_search_takes_the_least_squared_error(data: object, bits: int) -> None:
    assert callable(data)
    x: Tensor = data(4000, 8)
    ranges = [np.quantile(x.numpy().astype(np.float64), [1 - p, p]) for p in REPQ]
    grids = [asymmetric_grid(torch.tensor(min(lo, 0)), torch.tensor(max(hi, 0)), bits) for lo, hi in ranges]
    best = searched(x, bits=bits, per_channel=False, chunks=3)
    assert best.scale.shape == best.qmin.shape == best.qmax.shape == ()
    expected = grids[brute_force(x, grids)]
    assert float(best.scale) == pytest.approx(float(expected.scale), rel=16 * EPS)
    assert (float(best.qmin), float(best.qmax)) == (float(expected.qmin), float(expected.qmax))


def test_narrow_and_wide_ranges_both_win_somewhere() -> None:
    """Else the search would be decoration: few levels clip heavy tails, many levels reach for them."""
    tails = heavy_tailed(4000, 8)
    few, many = searched(tails, bits=3, per_channel=False), searched(tails, bits=8, per_channel=False)
    lowest, highest = (np.quantile(tails.numpy().astype(np.float64), p) for p in (1 - REPQ[0], REPQ[0]))
    assert float(few.scale) * 7 == pytest.approx(highest - lowest, rel=1e-5)
    assert float(many.scale) * 255 > 1.5 * (highest - lowest)


def test_per_channel_is_a_loop_over_channels() -> None:
    x = normal(3000, 6) * torch.tensor([1, 10, 0.1, 1, 3, 1]) + torch.tensor([0, 5, 0, -2, 0, 100])
    x[:, 3] = x[:, 3] ** 3
    together = searched(x, per_channel=True, chunks=4)
    assert together.scale.shape == (6, 1)
    for j in range(6):
        alone = searched(x[:, j : j + 1], per_channel=True, chunks=4)
        for name in ("scale", "qmin", "qmax"):
            assert torch.equal(getattr(together, name)[j : j + 1], getattr(alone, name))


@pytest.mark.parametrize("per_channel", [False, True])
def test_batching_does_not_change_the_choice(per_channel: bool) -> None:
    x = heavy_tailed(2000, 5)
    once, often = (searched(x, per_channel=per_channel, chunks=n) for n in (1, 17))
    for name in ("scale", "qmin", "qmax"):
        assert torch.equal(getattr(once, name), getattr(often, name))


def test_the_first_of_equals_is_taken() -> None:
    """Multiples of 1/2 lie on both grids without error."""
    coarse, fine = (asymmetric_grid(torch.tensor([0.0]), torch.tensor([15 * s]), 4) for s in (0.5, 0.25))
    for grids in ([coarse, fine], [fine, coarse]):
        search = Search(candidates=[grid.map(lambda t: t[:, None]) for grid in grids], error=of_rows)
        search.add(torch.tensor([[0.0, 0.5, 3.0]]))
        assert torch.equal(search.best().scale[:, 0], grids[0].scale)


@pytest.mark.parametrize("rules", [CPU, BOTH], ids=["onnx", "both"])
@pytest.mark.parametrize("bits", range(3, 9))
def test_per_tensor_grids_hold_zero_and_fit_their_container(bits: int, rules: GridRules) -> None:
    for lo, hi in ((-1.0, 2.0), (0.5, 2.0), (-2.0, -0.5), (0.0, 0.0)):
        grid = activation_grid(torch.tensor([lo]), torch.tensor([hi]), bits=bits, rules=rules, per_channel=False)
        assert grid.qmin <= 0 <= grid.qmax
        assert float(grid.qmax - grid.qmin) == 2**bits - 1
        reach = [float(grid.scale * q) for q in (grid.qmin, grid.qmax)]
        assert reach[0] <= min(lo, 0) + float(grid.scale)  # rounding the zero point moves the ends by half a step,
        assert reach[1] >= max(hi, 0) - float(grid.scale)  # snapping the scale by 255 · 2^-11 of one
        if not (rules is BOTH and bits == 8):  # a symmetric grid is as wide as it must be
            width = max(hi, 0) - min(lo, 0)
            assert float(grid.scale) * (2**bits - 1) == pytest.approx(width, rel=2.0**-11, abs=255 * 2.0**-14)
        if rules is BOTH:
            assert torch.equal(grid.scale.half().float(), grid.scale)
        if rules is BOTH and bits == 8:
            assert (float(grid.qmin), float(grid.qmax)) == (-128, 127)


def test_per_channel_grids_do_not_waste_codes_on_zero() -> None:
    lo, hi = torch.tensor([10.0]), torch.tensor([11.5])
    channel, tensor = (activation_grid(lo, hi, bits=4, rules=BOTH, per_channel=per) for per in (True, False))
    assert float(channel.scale) == pytest.approx(1.5 / 15, rel=4 * EPS * 11.5 / 1.5)
    assert float(tensor.scale) == pytest.approx(11.5 / 15, rel=2.0**-11)


def test_a_value_that_is_no_number_is_not_passed_over() -> None:
    """The later chunks of a long tensor are compared with the tail's last value, and NaN compares false to all. torch
    sorts NaN above every number, so it is the largest value."""
    values = normal(40, 100).reshape(1, -1)
    for at in (5, 3999):
        spoilt = values.clone()
        spoilt[0, at] = torch.nan
        assert bool(streamed(spoilt, [2000, 2000]).range(0.99999)[1].isnan().all())
