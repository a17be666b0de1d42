"""A weight row's grid: the percentile range of least squared error, legal on every target of the run."""

import math

import numpy as np
import pytest
import torch
from tiny_vit import calibrated_bundle, tiny_spec, tiny_vit
from torch import Tensor

from erq_export.calibrate.percentiles import WEIGHTS
from erq_export.calibrate.solve.weight_grid import weight_grid
from erq_export.contract.formats.affine import (
    Grid,
    asymmetric_grid,
    common_power,
    symmetric_grid,
)
from erq_export.contract.targets import GridRules, grid_rules
from erq_export.data.calibration_set import CalibrationSet

EPS = 2.0**-24
CPU, BOTH = grid_rules(["onnx"]), grid_rules(["onnx", "tensorrt-rtx"])
RULES = pytest.mark.parametrize("rules", [CPU, BOTH], ids=["onnx", "both"])
BITS = pytest.mark.parametrize("bits", range(2, 9))


def weights(n: int = 24, k: int = 300, *, seed: int = 0) -> Tensor:
    """Rows of very different size and tail: normal, heavy-tailed, skewed, with one outlier."""
    W = torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    W[1::4] = W[1::4] ** 3
    W[2::4] = torch.exp(W[2::4]) - 0.3
    W[3::4, 7] = 25
    return W * torch.logspace(-3, 1, n, dtype=torch.float64)[:, None]


def squared_error(W: Tensor, grid: Grid) -> Tensor:
    return (grid.fake_quantize(W) - W).square().sum(1)


def brute_force(row: Tensor, bits: int) -> tuple[Grid, float]:
    """One row, every percentile by NumPy, the first of least error; and that percentile."""
    best: tuple[float, float, Grid] | None = None
    make = symmetric_grid if bits == 8 else asymmetric_grid
    for p in WEIGHTS["wide"]:
        lo, hi = np.quantile(row.numpy(), [1 - p, p])
        grid = make(torch.tensor(min(lo, 0.0)), torch.tensor(max(hi, 0.0)), bits)
        error = float((grid.fake_quantize(row) - row).square().sum())
        if best is None or error < best[0]:
            best = error, p, grid
    assert best is not None
    return best[2], best[1]


@BITS
def test_every_row_takes_its_best_percentile(bits: int) -> None:
    """Against a loop over rows and percentiles. Quantiles agree to float64; the scale is then one float32."""
    W = weights()
    found = weight_grid(W, bits=bits, rules=CPU)
    chosen = set()
    for i, row in enumerate(W):
        expected, p = brute_force(row, bits)
        chosen.add(p)
        assert float(found.scale[i]) == pytest.approx(float(expected.scale), rel=2 * EPS)
        assert (float(found.qmin[i]), float(found.qmax[i])) == (float(expected.qmin), float(expected.qmax))
    assert len(chosen) > 1  # else the search would be decoration
    assert found.scale.shape == found.qmin.shape == found.qmax.shape == (len(W), 1)


@RULES
@BITS
def test_codes_fit_int8_with_zero_point_zero(bits: int, rules: GridRules) -> None:
    W = weights()
    W[0] = 20 * W[0].abs().max() + W[0]  # a range far above 0, which must still hold it
    W[1] = -20 * W[1].abs().max() + W[1]
    grid = weight_grid(W, bits=bits, rules=rules)
    assert float(grid.qmin.min()) >= -128
    assert float(grid.qmax.max()) <= 127
    assert bool((grid.qmax - grid.qmin == 2**bits - 1).all())
    assert bool(((grid.qmin <= 0) & (grid.qmax >= 0)).all())
    if bits == 8:
        assert bool((grid.qmin == -128).all())
    else:
        assert len(grid.qmin.unique()) > 1
    q = grid.quantize(W)
    assert torch.equal(q.to(torch.int8).double(), q)
    assert not torch.equal(grid.fake_quantize(torch.zeros_like(W)), W)
    assert torch.equal(grid.fake_quantize(torch.zeros_like(W)), torch.zeros_like(W))


@BITS
def test_a_half_precision_target_gets_one_power_of_two_and_exact_ratios(bits: int) -> None:
    W = weights()
    grid, plain = weight_grid(W, bits=bits, rules=BOTH), weight_grid(W, bits=bits, rules=CPU)
    ordered = W.sort(1).values
    make = symmetric_grid if bits == 8 else asymmetric_grid
    s0 = common_power(make(ordered[:, :1].clamp_max(0), ordered[:, -1:].clamp_min(0), bits).scale)
    assert math.log2(float(s0)) % 1 == 0
    ratio = grid.scale.double() / s0.double()
    assert torch.equal(ratio.half().double(), ratio)
    assert float(ratio.max()) <= 1
    assert not torch.equal(grid.scale, plain.scale)
    regular = plain.scale / s0 > 2.0**-13  # float16 has its full precision there; ratios below are 2^-14 at least
    same_range = (grid.scale / plain.scale - 1).abs() < 2.0**-10
    assert float(same_range[regular].double().mean()) > 0.9  # snapping may tip a choice between two percentiles


@RULES
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outliers_are_clipped_where_that_pays(bits: int, rules: GridRules) -> None:
    W = weights()
    found = squared_error(W, weight_grid(W, bits=bits, rules=rules))
    min_max = squared_error(W, weight_grid(W, bits=bits, rules=rules, percentiles=(1.0,)))
    assert bool((found <= min_max).all())
    assert float((found / min_max).min()) < 0.9


@RULES
def test_rows_do_not_see_each_other(rules: GridRules) -> None:
    """Under float16 rules they share s₀, which does not depend on their order."""
    W = weights()
    order = torch.randperm(len(W), generator=torch.Generator().manual_seed(0))
    whole, shuffled = weight_grid(W, bits=4, rules=rules), weight_grid(W[order], bits=4, rules=rules)
    for name in ("scale", "qmin", "qmax"):
        assert torch.equal(getattr(shuffled, name), getattr(whole, name)[order])


@RULES
@BITS
def test_dead_and_constant_rows_are_represented(bits: int, rules: GridRules) -> None:
    """A constant row is one end of its range: exact but for the scale's rounding, 2^-11 of it under float16 rules."""
    W = torch.zeros(3, 50, dtype=torch.float64)
    W[1], W[2] = 0.7, -0.2
    grid = weight_grid(W, bits=bits, rules=rules)
    assert bool((torch.isfinite(grid.scale) & (grid.scale > 0)).all())
    x_hat = grid.fake_quantize(W)
    assert torch.equal(x_hat[0], W[0])
    assert torch.allclose(x_hat, W, rtol=2.0**-11 + (1 / 127 if bits == 8 else 0), atol=0)


def test_the_first_of_equal_percentiles_is_taken() -> None:
    """2 bits hold −3, 12, 18 as 0, 10, 15 in steps of 5 and as 0, 14, 21 in steps of 7: off by 3, 2, 3 either way."""
    W = torch.tensor([[-3.0, 12.0, 18.0]], dtype=torch.float64)
    for percentiles, scale in (((0.75, 1.0), 5), ((1.0, 0.75), 7)):
        grid = weight_grid(W, bits=2, rules=CPU, percentiles=percentiles)
        assert float(squared_error(W, grid)) == 22
        assert float(grid.scale) == scale


def test_no_percentile_is_a_fault() -> None:
    with pytest.raises(ValueError, match="a search needs a candidate"):
        weight_grid(weights(), bits=4, rules=CPU, percentiles=())


@pytest.mark.parametrize("method", ["erq", "gptq", "repq", "rtn"])
def test_every_method_searches_the_percentiles_it_is_told(images: CalibrationSet, method: str) -> None:
    """RepQ's three hardly clip a row of 32 numbers; at 2 bits the wide grid does, so its steps are the finer ones."""
    wide, repq = (
        calibrated_bundle(tiny_vit(), images, tiny_spec("w2a4", method=method, weight_percentiles=name)).layers
        for name in ("wide", "repq")
    )
    clipped = {path: float((wide[path].weight_scale < 0.99 * repq[path].weight_scale).double().mean()) for path in wide}
    assert sum(clipped.values()) / len(clipped) > 0.2, clipped
