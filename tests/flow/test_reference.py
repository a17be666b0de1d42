"""The target reference: the published quantizers in a bundle that is simulated, and grids that no container limits."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from norm_pair import pair
from tiny_swin import tiny_swin
from tiny_vit import TINY_LAYERS, calibrated_bundle, random_images, tiny_spec, tiny_vit

from erq_export import exporters
from erq_export.calibrate.observers import activation_grid
from erq_export.calibrate.published.papers import PAPERS
from erq_export.calibrate.reparam import fold
from erq_export.calibrate.solve.weight_grid import weight_grid
from erq_export.contract.bundle import Bundle, Deployed
from erq_export.contract.errors import SpecError
from erq_export.contract.formats.affine import Grid
from erq_export.contract.formats.logarithmic import LogGrid
from erq_export.contract.quantized import QuantizedLayer, QuantizedOperand
from erq_export.contract.simulated import SimulatedLayer, SimulatedOperand, SimulatedQuantizer
from erq_export.contract.targets import grid_rules
from erq_export.exporters.onnx.write import marker_graph, rebound
from erq_export.models.rebuild import reference_model

FREE = grid_rules(["reference"])
ALONE: dict[str, Any] = {"targets": ("reference",)}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_free_range_need_not_hold_zero(bits: int) -> None:
    """The whole of [lo, hi], in as many steps as there are; the ends are within half a step of grid points."""
    lo, hi = torch.tensor(3.0), torch.tensor(5.0)
    grid = activation_grid(lo, hi, bits=bits, rules=FREE, per_channel=False)
    assert float(grid.scale) == pytest.approx(2 / (2**bits - 1))
    ends = grid.fake_quantize(torch.tensor([3.0, 5.0]))
    assert bool(((ends - torch.tensor([3.0, 5.0])).abs() <= grid.scale * 0.51).all())
    W = torch.rand(6, 300, generator=torch.Generator().manual_seed(0)).double() + 2
    free, held = (weight_grid(W, bits=bits, rules=rules) for rules in (FREE, grid_rules(["onnx"])))
    assert bool((free.qmax - free.qmin == 2**bits - 1).all())
    assert bool((free.qmin > 0).all())
    assert float((free.fake_quantize(W) - W).norm()) < 0.6 * float((held.fake_quantize(W) - W).norm())


def test_a_constant_row_keeps_codes_that_float32_can_count() -> None:
    W = torch.full((2, 8), 3.5, dtype=torch.float64)
    W[1] = 0
    grid = weight_grid(W, bits=4, rules=FREE)
    assert float(grid.quantize(W).abs().max()) < 2**24
    assert torch.allclose(grid.fake_quantize(W), W, rtol=2.0**-20)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_mean_zero_point_is_the_published_quantizer(bits: int) -> None:
    """code = clip(round(x/s) + z, 0, 2^b − 1), x̂ = (code − z) s with z̃ = mean z
    (docs/method.md, "Uniform grids" and "LayerNorm fold"), in float64.

    1e-5 of the largest value: grids are float32. The pair's float function stays what it was.
    """
    one = pair()
    channels = one.per_channel(bits)
    folded = fold(one.gamma, one.beta, one.weight, one.bias, channels, bits=bits, rules=FREE, mean_zero=True)
    z = float((-channels.qmin).double().mean())
    assert z != round(z)
    assert float(folded.grid.qmin) == pytest.approx(-z, rel=1e-6)
    assert float(folded.grid.scale) == pytest.approx(float(channels.scale.double().mean()), rel=1e-6)
    x = one.normed(folded).float()
    s, z32 = float(folded.grid.scale), -float(folded.grid.qmin)
    codes = torch.clip(torch.round(x / s).double() + z32, 0, 2**bits - 1)
    assert torch.allclose(
        folded.grid.fake_quantize(x).double(), (codes - z32) * s, rtol=0, atol=1e-5 * float(x.abs().max())
    )
    assert bool((codes != codes.round()).any())
    before = one.normed() @ one.weight.double().T + one.bias.double()  # type: ignore[union-attr]
    after = one.normed(folded) @ folded.weight.double().T + folded.bias.double()
    assert torch.allclose(after, before, rtol=0, atol=1e-4 * float(before.abs().max()))


def test_a_rounded_zero_point_outside_the_codes_is_kept_where_nothing_must_hold_it() -> None:
    """Then the fold is exact, and where codes must hold 0 it is moved."""
    one = pair()
    far = Grid(scale=torch.ones(48), qmin=torch.full((48,), 40.0), qmax=torch.full((48,), 55.0))
    free, held = (
        fold(one.gamma, one.beta, one.weight, one.bias, far, bits=4, rules=rules)
        for rules in (FREE, grid_rules(["onnx"]))
    )
    assert float(free.grid.qmin) == 40
    assert float(held.grid.qmin) == 0


@pytest.mark.parametrize("tiny", [tiny_vit, tiny_swin], ids=["vit", "swin"])
@pytest.mark.parametrize("paper", PAPERS)
def test_a_published_scheme_comes_back_from_its_files(paper: str, tiny: Any, tmp_path: Path) -> None:
    """Log-√2 softmax, uniform q, k, v at the activations' bits, fractional zero points, a float image: all stored."""
    loaded = tiny()
    data = random_images(size=loaded.identity.preprocess.input_size[1])
    n_attention = len(loaded.family.attention(loaded.model))
    bundle = calibrated_bundle(loaded, data, tiny_spec(**ALONE, **PAPERS[paper].options))
    roles = {}
    for operand in bundle.operands.values():
        roles.setdefault(operand.role, []).append(isinstance(operand.grid, LogGrid))
        assert operand.bits == 4
    assert roles == {role: [role == "softmax"] * n_attention for role in ("q", "k", "v", "softmax")}
    acts = {path: layer.act for path, layer in bundle.layers.items()}
    assert (acts["patch_embed.proj"] is None) == (paper == "tpami")
    folded = [act for path, act in acts.items() if path.endswith(("qkv", "fc1"))]
    assert any(float(act.qmin) != int(act.qmin) for act in folded if act is not None)
    for path, act in acts.items():
        if path.endswith("reduction") and act is not None:
            assert (float(act.qmin) == int(act.qmin)) == (paper == "tpami")
    bundle.save(tmp_path)
    again = Bundle.load(tmp_path)
    with torch.no_grad():
        wanted = reference_model(bundle)(data.pixels)
        assert torch.equal(reference_model(again)(data.pixels), wanted)
    quantizers = [m for m in reference_model(again).modules() if isinstance(m, SimulatedQuantizer)]
    assert [isinstance(m.grid, LogGrid) for m in quantizers].count(True) == n_attention
    assert len(quantizers) == 4 * n_attention
    again.save(tmp_path)
    assert Bundle.load(tmp_path).spec == bundle.spec
    with torch.no_grad():
        exact = tiny().model(data.pixels)
    assert float((wanted - exact).norm() / exact.norm()) < 1.0


def test_a_float_image_has_no_error_at_the_patch_embedding() -> None:
    bundles = [
        calibrated_bundle(tiny_vit(), random_images(), tiny_spec(**ALONE, patch_input=how)) for how in ("float", "8")
    ]
    errors = [b.statistics["patch_embed.proj"].error_inputs for b in bundles]
    assert errors[0] == 0 < errors[1]
    assert bundles[0].layers["patch_embed.proj"].a_bits == 32
    assert tuple(bundles[0].layers) == TINY_LAYERS


def test_layers_of_the_reference_are_fitted_to_deployed_inputs_too() -> None:
    """The options of the loop and those of reference do not exclude each other."""
    spec = tiny_spec(**ALONE, patch_input="float", inputs="quantized", input_ranges="quantized", zero_points="mean")
    bundle = calibrated_bundle(tiny_vit(), random_images(), spec)
    assert all(torch.isfinite(layer.weight).all() for layer in bundle.layers.values())


def test_what_is_calibrated_for_reference_alone_is_simulated_and_no_graph_s() -> None:
    """Every part, whatever its options; beside another target every part is deployed. Graphs are written from the latter."""
    for targets, options in (
        (("reference",), {}),
        (("reference",), {"attention": "int8"}),
        (("reference", "onnx"), {}),
    ):
        bundle = calibrated_bundle(tiny_vit(), random_images(), tiny_spec(targets=targets, **options))
        parts = [*bundle.layers.values(), *bundle.operands.values()]
        simulated = [isinstance(part, SimulatedLayer | SimulatedOperand) for part in parts]
        assert simulated == [targets == ("reference",)] * len(parts)
        if targets == ("reference",):
            with pytest.raises(SpecError, match="for reference alone") as caught:
                bundle.deployed()
            assert "--to onnx" in caught.value.fix
        else:
            assert bundle.deployed().layers == bundle.layers


def test_what_writes_graphs_takes_deployed_bundles_alone() -> None:
    """So the type checker sees every way from a bundle to a graph; `Deployed` names no simulated part."""
    for writer in (marker_graph, rebound):
        assert get_type_hints(writer)["bundle"] is Deployed
    parts = get_type_hints(Deployed)
    assert parts["layers"] == Mapping[str, QuantizedLayer]
    assert parts["operands"] == Mapping[str, QuantizedOperand]
    names = {field.name for part in (QuantizedLayer, QuantizedOperand) for field in fields(part)}
    assert "outliers" not in names
    for path in Path(exporters.__path__[0]).rglob("*.py"):
        assert "contract.simulated" not in path.read_text(encoding="utf-8")
