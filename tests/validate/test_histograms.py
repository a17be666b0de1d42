"""Histograms count what is there: every weight once, every input value once, each at its code."""

import numpy as np
import pytest
import torch
from torch import nn

from erq_export.contract.formats.affine import Grid
from erq_export.contract.histograms import MOST_BARS
from erq_export.contract.quantized import QuantizedLayer, QuantLinear
from erq_export.validate.metrics.histograms import histograms, of_codes, of_input


def grid(scale: float, qmin: float, qmax: float) -> Grid:
    return Grid(scale=torch.tensor(scale), qmin=torch.tensor(float(qmin)), qmax=torch.tensor(float(qmax)))


@pytest.mark.parametrize(("qmin", "qmax"), [(-8, 7), (0, 15), (-128, 127), (-3, 4), (-100, 27)])
def test_every_value_is_counted_at_its_code(qmin: int, qmax: int) -> None:
    x = torch.randn(5, 7, 11, generator=torch.Generator().manual_seed(0)) * 3
    found = of_input(x, grid(0.25, qmin, qmax))
    codes = np.clip(np.rint(x.double().numpy() / 0.25), qmin, qmax).astype(int)  # half to even, as the grid rounds
    width = -(-(qmax - qmin + 1) // MOST_BARS)
    for i, count in enumerate(found.codes.counts):
        low = qmin + i * width
        assert count == ((codes >= low) & (codes < low + width)).sum()
    assert found.codes.n == x.numel()
    assert (found.codes.first, found.codes.width) == (qmin, width)
    assert qmax <= found.codes.last < qmax + width
    assert (found.low, found.high) == (float(x.min()), float(x.max()))


def test_what_lies_beyond_the_grid_is_what_clipping_moves_by_more_than_half_a_step() -> None:
    x = torch.tensor([-2.1, -2.0, -1.9, 0.0, 1.7, 1.8, 1.9, 50.0])
    found = of_input(x, grid(0.25, -8, 7))  # from −2 to 1.75
    moved = (grid(0.25, -8, 7).fake_quantize(x) - x).abs() > 0.125 + 1e-6
    assert found.beyond == int(moved.sum()) == 2


def test_what_is_no_number_is_counted_too() -> None:
    found = of_input(torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0]), grid(1.0, -2, 1))
    assert found.codes.counts == (1, 0, 2, 1)
    assert found.beyond == 2


def test_weights_have_bars_from_the_least_to_the_largest() -> None:
    q = torch.tensor([[-3, -3, 0], [4, 4, 4]], dtype=torch.int8)
    found = of_codes(q)
    assert (found.first, found.last, found.counts) == (-3, 4, (2, 0, 0, 1, 0, 0, 0, 3))


def test_one_pass_sees_every_layer_and_leaves_the_model_as_it_was() -> None:
    def layer(seed: int) -> QuantizedLayer:
        q = torch.randint(-8, 8, (6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
        ones, act = torch.ones(6), grid(0.5, -8, 7)
        return QuantizedLayer(
            weight_q=q, weight_scale=ones * 0.1, weight_qmin=(ones * -8).short(), bias=ones, act=act, w_bits=4, a_bits=4
        )  # fmt: skip

    model = nn.Sequential(QuantLinear("a", layer(0)), nn.ReLU(), QuantLinear("b", layer(1)))
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))
    before = model(x)
    found = histograms(model, x)
    assert list(found.layers) == ["a", "b"]
    assert found.n_images == 2
    assert all(
        one.weights.n == 36 and one.inputs is not None and one.inputs.codes.n == 60 for one in found.layers.values()
    )
    second = found.layers["b"].inputs
    assert second is not None
    assert second.low == 0.0  # behind a ReLU
    assert torch.equal(model(x), before)
    assert not any(module._forward_pre_hooks for module in model.modules())
