"""The hidden states: what a layer is fitted to with `-O inputs=quantized`, and where `-O input_ranges=quantized` searches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_swin import tiny_swin
from tiny_vit import TINY_LAYERS, calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import Tensor, nn

from erq_export.calibrate import loop
from erq_export.calibrate.capture import unseen, walk
from erq_export.calibrate.halves import HalvedMoments
from erq_export.calibrate.loop import CHUNK
from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.methods.method import options_of
from erq_export.calibrate.moments import Moments
from erq_export.calibrate.observers import activation_grid
from erq_export.calibrate.percentiles import INPUTS
from erq_export.calibrate.setting import Setting
from erq_export.calibrate.solve.problem import Problem
from erq_export.calibrate.states import installed
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import SpecError
from erq_export.contract.quantized import QuantLinear
from erq_export.contract.sites import Site
from erq_export.contract.spec import Quantization
from erq_export.data.calibration_set import CalibrationSet
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model

FITTING = ("erq", "gptq")  # methods whose weights depend on what a layer is given
OPTIONS = ({"inputs": "quantized"}, {"input_ranges": "quantized"}, {"inputs": "quantized", "input_ranges": "quantized"})


def recorded(
    monkeypatch: pytest.MonkeyPatch, spec: Quantization, images: CalibrationSet
) -> tuple[Bundle, dict[str, Problem]]:
    """A calibration, and the problem that each layer posed."""
    problems: dict[str, Problem] = {}
    pose = loop.layer_problem

    def record(linear: nn.Linear, moments: HalvedMoments, site: Site, setting: Setting) -> Problem:
        problems[site.path] = pose(linear, moments, site, setting)
        return problems[site.path]

    monkeypatch.setattr(loop, "layer_problem", record)
    return calibrated_bundle(tiny_vit(), images, spec), problems


def float_model(bundle: Bundle, problems: dict[str, Problem]) -> nn.Module:
    """What was calibrated, in full precision: norms as folded, weights as posed."""
    model = tiny_vit().model
    posed = {f"{path}.{name}": getattr(p, name).float() for path, p in problems.items() for name in ("weight", "bias")}
    model.load_state_dict(bundle.leftovers | posed)
    return model


@torch.no_grad()
def site_inputs(model: nn.Module, images: CalibrationSet) -> dict[str, list[Tensor]]:
    """One forward of a whole model: every site's inputs, chunk by chunk of (rows, k)."""
    seen: dict[str, list[Tensor]] = {path: [] for path in TINY_LAYERS}
    for path, chunks in seen.items():
        model.get_submodule(path).register_forward_pre_hook(
            lambda _module, args, chunks=chunks: chunks.append(args[0].flatten(0, -2))
        )
    for pixels in images.pixels.split(CHUNK):
        model(pixels)
    return seen


@pytest.mark.parametrize("input_ranges", ["float", "quantized"])
@pytest.mark.parametrize("method", FITTING)
def test_layers_are_fitted_to_what_the_deployed_model_gives_them(
    monkeypatch: pytest.MonkeyPatch, images: CalibrationSet, method: str, input_ranges: str
) -> None:
    """x from one forward of the float model, x′ from one forward of the finished quantized one: the moments, to the bit."""
    spec = tiny_spec("w3a4", method=method, inputs="quantized", input_ranges=input_ranges)
    bundle, problems = recorded(monkeypatch, spec, images)
    exact, deployed = (site_inputs(m, images) for m in (float_model(bundle, problems), reference_model(bundle)))
    for path in TINY_LAYERS:
        moments = Moments.zero(exact[path][0].shape[1], bias=True)
        for x, x_deployed in zip(exact[path], deployed[path], strict=True):
            moments.add(x, bundle.layers[path].act.fake_quantize(x_deployed))
        for name in ("G", "D", "C"):
            assert torch.equal(getattr(problems[path].moments, name), getattr(moments, name)), (path, name)
    assert not torch.equal(exact["head"][0], deployed["head"][0])


@pytest.mark.parametrize("method", ["repq", "rtn"])
def test_methods_that_fit_nothing_know_no_inputs_to_fit_to(method: str) -> None:
    assert not options_of(method, {}).deployed_inputs
    with pytest.raises(SpecError, match=f"-O inputs changes nothing with --method {method}") as caught:
        options_of(method, {"inputs": "quantized"})
    assert "--method erq or --method gptq" in caught.value.fix


def test_the_stated_error_is_then_the_deployed_model_s_own(
    monkeypatch: pytest.MonkeyPatch, images: CalibrationSet
) -> None:
    """Outputs of every layer inside the quantized model against those inside the float one; float32 moments (rel 2e-3)."""
    bundle, problems = recorded(monkeypatch, tiny_spec("w3a4", inputs="quantized"), images)
    exact, deployed = (site_inputs(m, images) for m in (float_model(bundle, problems), reference_model(bundle)))
    for path in TINY_LAYERS:
        layer, problem = bundle.layers[path], problems[path]
        y = torch.cat(exact[path]).double() @ problem.weight.T + problem.bias
        x_hat = layer.act.fake_quantize(torch.cat(deployed[path])).double()
        y_hat = x_hat @ layer.weight.double().T + layer.bias.double()
        expected = float((y_hat - y).square().sum() / y.square().sum())
        assert bundle.statistics[path].error == pytest.approx(expected, rel=2e-3)


def test_errors_of_the_layers_before_are_absorbed(images: CalibrationSet) -> None:
    """The whole network on the calibration images: seeing what comes before must help, or it is decoration."""
    pixels = images.pixels
    with torch.no_grad():
        exact = tiny_vit().model(pixels)
        errors = {
            how: float((reference_model(calibrated_bundle(tiny_vit(), images, tiny_spec("w2a4", inputs=how)))(pixels) - exact)
                       .square().sum() / exact.square().sum())
            for how in ("float", "quantized")
        }  # fmt: skip
    assert errors["quantized"] < 0.9 * errors["float"]


def least_error_scale(values: Tensor, bits: int) -> float:
    """The range search by NumPy in float64, for a whole tensor."""
    found = []
    for p in INPUTS[ErqOptions().input_percentiles]:
        lo, hi = (torch.tensor([q]).float() for q in np.quantile(values.double().numpy(), [1 - p, p]))
        grid = activation_grid(lo, hi, bits=bits, rules=tiny_spec().rules, per_channel=False)
        error = float((grid.fake_quantize(values) - values).double().square().sum())
        found.append((error, float(grid.scale)))
    return min(found)[1]


@pytest.mark.parametrize("method", ["erq", "rtn"])
def test_ranges_are_searched_behind_the_quantized_activations_before(
    monkeypatch: pytest.MonkeyPatch, images: CalibrationSet, method: str
) -> None:
    """The float model with every input on its final grid: each range is the best for what arrives there. Folded sites of
    erq were searched per channel, before the fold; their own search has its tests (test_reparam.py)."""
    spec = tiny_spec("w3a4", method=method, input_ranges="quantized", range_error="input")
    bundle, problems = recorded(monkeypatch, spec, images)
    model, exact = float_model(bundle, problems), site_inputs(float_model(bundle, problems), images)
    for path in TINY_LAYERS:
        act = bundle.layers[path].act
        model.get_submodule(path).register_forward_pre_hook(lambda _m, args, act=act: (act.fake_quantize(args[0]),))
    degraded: dict[str, list[Tensor]] = {path: [] for path in TINY_LAYERS}
    for path, chunks in degraded.items():  # seen before that hook of its own
        model.get_submodule(path).register_forward_pre_hook(
            lambda _m, args, chunks=chunks: chunks.append(args[0].flatten(0, -2)), prepend=True
        )
    with torch.no_grad():
        for pixels in images.pixels.split(CHUNK):
            model(pixels)
    changed = 0
    for site in (s for stage in tiny_vit().stages for s in stage.sites):
        if method == "erq" and (site.norm or site.values):
            continue
        bits, scale = Setting.of(spec).act_bits(site), float(bundle.layers[site.path].act.scale)
        assert scale == pytest.approx(least_error_scale(torch.cat(degraded[site.path]), bits), rel=1e-5), site.path
        changed += scale != pytest.approx(least_error_scale(torch.cat(exact[site.path]), bits), rel=1e-5)
    assert changed  # else the two would be the same option


def test_folding_then_quantizing_is_quantizing_per_channel_on_degraded_inputs_too(images: CalibrationSet) -> None:
    """The float function survives the fold wherever its statistics came from: 1e-5 of the largest output."""
    for options in OPTIONS:
        loaded = tiny_vit()
        bundle = calibrated_bundle(loaded, images, tiny_spec("w8a8", **options))
        with torch.no_grad():
            got, exact = reference_model(bundle)(images.pixels), tiny_vit().model(images.pixels)
        assert float((got - exact).square().sum()) < 0.02 * float(exact.square().sum())


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin])
def test_a_stage_lists_its_sites_in_the_order_of_the_data(make: Callable[[], Loaded]) -> None:
    """What solving one after the other relies on."""
    loaded = make()
    hidden = [torch.zeros(1, *loaded.identity.preprocess.input_size)]
    for stage in loaded.stages:
        order: list[str] = []
        hidden = walk(loaded.model, stage, hidden, lambda path, _x, order=order: order.append(path))
        assert order == [site.path for site in stage.sites]


def test_an_input_on_a_grid_is_shown_before_it_is_quantized(bundle: Bundle) -> None:
    loaded = tiny_vit()
    stage, act = loaded.stages[1], bundle.layers["blocks.0.attn.qkv"].act
    h = [torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))]
    plain: dict[str, Tensor] = {}
    behind: dict[str, Tensor] = {}
    walk(loaded.model, stage, h, plain.__setitem__)
    walk(loaded.model, stage, h, behind.__setitem__, on_grid={"blocks.0.attn.qkv": act})
    assert torch.equal(plain["blocks.0.attn.qkv"], behind["blocks.0.attn.qkv"])
    assert not torch.equal(plain["blocks.0.attn.proj"], behind["blocks.0.attn.proj"])


def test_float_modules_return_when_the_quantized_ones_leave(bundle: Bundle) -> None:
    loaded = tiny_vit()
    before = dict(loaded.model.named_modules())
    stage, h = loaded.stages[1], [torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))]
    out = walk(loaded.model, stage, h, unseen)[0]
    with installed(loaded.model, bundle.layers):
        assert isinstance(loaded.model.get_submodule("blocks.0.attn.qkv"), QuantLinear)
        assert not torch.equal(walk(loaded.model, stage, h, unseen)[0], out)
    assert dict(loaded.model.named_modules()) == before
    assert torch.equal(walk(loaded.model, stage, h, unseen)[0], out)
    with pytest.raises(KeyError), installed(loaded.model, bundle.layers):
        raise KeyError
    assert dict(loaded.model.named_modules()) == before


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o))
def test_a_swin_is_calibrated_as_well(options: dict[str, Any]) -> None:
    loaded, images = tiny_swin(), random_images(3, size=32)
    bundle = calibrated_bundle(loaded, images, tiny_spec("w4a4", ("onnx", "tensorrt-rtx"), **options))
    with torch.no_grad():
        assert torch.equal(loaded.model(images.pixels), reference_model(bundle)(images.pixels))
    assert all(0 <= row.error < 0.1 for row in bundle.statistics.values())
