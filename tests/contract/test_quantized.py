"""A quantized layer computes with integers times scales, and stands where the float one stood."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_vit import TINY_LAYERS
from torch import Tensor, nn

from erq_export.contract.bundle import Bundle
from erq_export.contract.formats.affine import Grid
from erq_export.contract.part import install
from erq_export.contract.quantized import QuantizedLayer, QuantLinear, quant_linears
from erq_export.models.loading import Loaded

EPS = 2.0**-24


def layer(*, k: int = 40, n: int = 12, a_bits: int = 4) -> QuantizedLayer:
    generator = torch.Generator().manual_seed(0)
    return QuantizedLayer(
        weight_q=torch.randint(-5, 11, (n, k), generator=generator).to(torch.int8),
        weight_scale=torch.rand(n, generator=generator) + 0.01,
        weight_qmin=torch.full((n,), -5, dtype=torch.int16),
        bias=torch.randn(n, generator=generator),
        act=Grid(scale=torch.tensor(0.13), qmin=torch.tensor(-6.0), qmax=torch.tensor(2.0**a_bits - 7)),
        w_bits=4,
        a_bits=a_bits,
    )


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_the_weight_is_integers_times_row_scales() -> None:
    one = layer()
    for i in range(len(one.weight_q)):
        assert torch.equal(one.weight[i], one.weight_q[i].float() * one.weight_scale[i])


@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 5, 40)])
def test_forward_is_a_linear_on_the_quantized_input(shape: tuple[int, ...]) -> None:
    one, x = layer(), inputs(*shape)
    assert torch.equal(QuantLinear("x", one)(x), F.linear(one.act.fake_quantize(x), one.weight, one.bias))
    assert not torch.allclose(QuantLinear("x", one)(x), F.linear(x, one.weight, one.bias), atol=0.1)


def test_forward_is_integer_arithmetic() -> None:
    """int64 products, then the two scales and the bias in float64. In float32 each of the k products is rounded three
    times and added once: (k + 3) eps of the sum of their sizes, as any order of addition allows."""
    one, x = layer(), inputs(50, 40)
    q_x = one.act.quantize(x).long()
    scale = one.act.scale.double() * one.weight_scale.double()  # (n,)
    exact = (q_x @ one.weight_q.long().T) * scale + one.bias.double()
    size = (q_x.abs() @ one.weight_q.long().abs().T) * scale + one.bias.double().abs()
    assert bool(((QuantLinear("x", one)(x).double() - exact).abs() <= 44 * EPS * size).all())


def test_inputs_beyond_the_grid_saturate() -> None:
    one = layer()
    module = QuantLinear("x", one)
    ends = [float(one.act.scale * q) for q in (one.act.qmin, one.act.qmax)]
    for far, end in zip((-1e6, 1e6), ends, strict=True):
        assert torch.equal(module(torch.full((1, 40), far)), module(torch.full((1, 40), end)))


def test_the_grid_of_the_module_is_the_grid_of_the_layer() -> None:
    one = layer()
    grid = QuantLinear("x", one).grid
    for name in ("scale", "qmin", "qmax"):
        assert torch.equal(getattr(grid, name), getattr(one.act, name))


def test_install_replaces_one_module_and_no_other() -> None:
    inner = nn.Sequential(nn.ReLU(), nn.Linear(40, 12))
    model = nn.Sequential(nn.Linear(40, 40), inner, nn.Linear(12, 3))
    others = [model[0], inner[0], model[2]]
    install(model, "1.1", layer())
    assert [model[0], inner[0], model[2]] == others
    assert isinstance(inner[1], QuantLinear)
    assert quant_linears(model) == {"1.1": inner[1]}
    assert model(inputs(4, 40)).shape == (4, 3)


def test_every_layer_of_a_calibrated_model_is_quantized(calibrated: tuple[Loaded, Bundle]) -> None:
    model = calibrated[0].model
    assert tuple(quant_linears(model)) == TINY_LAYERS
    assert not [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def test_under_export_a_layer_is_one_marker_of_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    symbolic = torch.onnx.ops.symbolic

    def record(name: str, args: tuple[Tensor, ...], *, attrs: dict[str, Any], **rest: Any) -> Tensor:
        seen.append((name, attrs))
        return symbolic(name, args, attrs, **rest)

    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    monkeypatch.setattr(torch.onnx.ops, "symbolic", record)
    y = QuantLinear("blocks.0.attn.qkv", layer())(inputs(2, 5, 40))
    assert (y.shape, y.dtype) == ((2, 5, 12), torch.float32)
    assert seen == [("erq::QuantLinear", {"qmin": -6, "qmax": 9, "w_bits": 4, "a_bits": 4})]
