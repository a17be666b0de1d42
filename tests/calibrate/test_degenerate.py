"""Inputs at the edge: every method gives a legal, finite, sensible bundle, or says what is wrong and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from legal import assert_legal
from safetensors.torch import save_file
from tiny_vit import TINY, TINY_ARGS, calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import Tensor, nn

from erq_export.contract.errors import DataError
from erq_export.contract.registry import METHODS
from erq_export.contract.sites import submodule
from erq_export.contract.spec import ModelSpec
from erq_export.data.calibration_set import CalibrationSet
from erq_export.models.loading import Loaded, load
from erq_export.models.names import architecture
from erq_export.models.rebuild import reference_model

ALL, ONNX = ("onnx", "tensorrt-rtx"), ("onnx",)


def logits(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(pixels)
    return out


Damage = Callable[[Loaded], None]


def layer_norm(loaded: Loaded, path: str) -> nn.LayerNorm:
    return cast(nn.LayerNorm, submodule(loaded.model, path, nn.LayerNorm))


def linear(loaded: Loaded, path: str) -> nn.Linear:
    return cast(nn.Linear, submodule(loaded.model, path, nn.Linear))


def dead_channel(loaded: Loaded) -> None:
    """A LayerNorm that gives 0 in one channel, always."""
    for name in ("blocks.0.norm1", "blocks.1.norm2"):
        norm = layer_norm(loaded, name)
        norm.weight[3] = norm.bias[3] = 0


def constant_channel(loaded: Loaded) -> None:
    """A LayerNorm that gives the same number in one channel, always."""
    for name in ("blocks.0.norm1", "blocks.1.norm2"):
        norm = layer_norm(loaded, name)
        norm.weight[5], norm.bias[5] = 0, 0.7


def constant_activation(loaded: Loaded) -> None:
    """A layer whose whole input never changes."""
    norm = layer_norm(loaded, "blocks.1.norm1")
    norm.weight.zero_()
    norm.bias.fill_(0.3)


def dead_layer(loaded: Loaded) -> None:
    """fc1 gives 0, so fc2 is given 0."""
    for parameter in linear(loaded, "blocks.0.mlp.fc1").parameters():
        parameter.zero_()


def dead_weights(loaded: Loaded) -> None:
    """Rows of zeros, and a head of zeros."""
    linear(loaded, "blocks.0.attn.proj").weight[:4] = 0
    linear(loaded, "head").weight.zero_()


def nothing(loaded: Loaded) -> None:
    """No damage: the data or the arguments are the odd part."""


def black(images: CalibrationSet) -> CalibrationSet:
    return CalibrationSet(pixels=torch.zeros_like(images.pixels), names=images.names, sha256="")


ODD: dict[str, tuple[dict[str, Any], Damage, Callable[[], CalibrationSet]]] = {
    "dead channel": ({}, dead_channel, random_images),
    "constant channel": ({}, constant_channel, random_images),
    "constant activation": ({}, constant_activation, random_images),
    "dead layer": ({}, dead_layer, random_images),
    "dead weights": ({}, dead_weights, random_images),
    "black images": ({}, nothing, lambda: black(random_images())),
    "one image": ({}, nothing, lambda: random_images(1)),
    "no qkv bias": ({"qkv_bias": False}, nothing, random_images),
    "no head": ({"num_classes": 0}, nothing, random_images),
    "no class token": ({"class_token": False, "global_pool": "avg"}, nothing, random_images),
}


HOW: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    "erq, published": {"rounding": "paper", "row_steps": 0, "head_ridge": 1.0, "weight_percentiles": "repq"},
    "erq, all quantized": {"inputs": "quantized", "input_ranges": "quantized"},
    "gptq, inputs quantized": {"method": "gptq", "inputs": "quantized"},
}


@pytest.mark.parametrize("bits", ["w2a3", "w8a8"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(("how", "targets"), [("erq", ONNX), *((how, ALL) for how in HOW)])
def test_odd_inputs_are_calibrated_like_any_other(how: str, targets: tuple[str, ...], odd: str, bits: str) -> None:
    """Legal, finite, equal to the reference; and at 8 bits still the float model, to 2 % of its output's energy."""
    args, damage, data = ODD[odd]
    loaded, untouched = tiny_vit(**args), tiny_vit(**args)
    damage(loaded)
    damage(untouched)
    spec, images = tiny_spec(bits, targets, **HOW[how]), data()
    bundle = calibrated_bundle(loaded, images, spec)
    assert_legal(bundle, spec)
    got, exact = logits(loaded.model, images.pixels), logits(untouched.model, images.pixels)
    assert torch.equal(got, logits(reference_model(bundle), images.pixels))
    assert bool(torch.isfinite(got).all())
    if bits == "w8a8":
        assert float((got - exact).square().sum()) < 0.02 * float(exact.square().sum()) + 1e-12


def test_constant_channels_fit_a_float16_graph(images: CalibrationSet) -> None:
    loaded = tiny_vit()
    norm = layer_norm(loaded, "blocks.0.norm1")
    norm.weight[:8], norm.bias[:8] = 0, torch.linspace(1, 50, 8)
    bundle = calibrated_bundle(loaded, images, tiny_spec("w4a3", ("onnx", "tensorrt-rtx")))
    for name in ("weight", "bias"):
        assert float(bundle.leftovers[f"blocks.0.norm1.{name}"].abs().max()) < torch.finfo(torch.float16).max


def test_a_layer_without_a_bias_gets_one_and_uses_it(images: CalibrationSet) -> None:
    bundle = calibrated_bundle(tiny_vit(qkv_bias=False), images, tiny_spec())
    assert float(bundle.layers["blocks.0.attn.qkv"].bias.abs().max()) > 0


@pytest.mark.parametrize("how", HOW)
def test_a_head_with_fewer_rows_than_columns_is_fitted_and_still_generalises(how: str) -> None:
    """4 images, 32 inputs of the head. Its own rows are met at least as well as by rounding, others are not forgotten."""
    few, unseen = random_images(4), random_images(64, seed=9).pixels
    bundle = calibrated_bundle(tiny_vit(), few, tiny_spec("w4a4", **HOW[how]))
    head = bundle.statistics["head"]
    assert head.n_rows == 4
    assert head.error <= head.error_nearest
    exact, got = logits(tiny_vit().model, unseen), logits(reference_model(bundle), unseen)
    assert float((got - exact).square().sum()) < 0.5 * float(exact.square().sum())


@pytest.mark.parametrize("bits", ["w2a4", "w8a4", "w4a3", "w4a8", "w2a8", "w8a3"])
@pytest.mark.parametrize("method", METHODS)
def test_the_fewest_and_the_most_bits(images: CalibrationSet, method: str, bits: str) -> None:
    spec = tiny_spec(bits, ("onnx", "tensorrt-rtx"), method=method)
    bundle = calibrated_bundle(tiny_vit(), images, spec)
    assert_legal(bundle, spec)
    codes = [layer.weight_q.int() - layer.weight_qmin[:, None].int() for layer in bundle.layers.values()]
    assert max(int(c.max()) for c in codes) == 2**spec.bits.w - 1  # the ends of the range are used
    assert min(int(c.min()) for c in codes) <= 1  # at 8 bits symmetric: −128 may stay unused


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    state = architecture(TINY, TINY_ARGS).state_dict()
    state["blocks.1.mlp.fc1.weight"][3, 5] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"blocks\.1\.mlp\.fc1\.weight holds NaN or infinity"):
        load(ModelSpec(name=TINY, checkpoint=str(tmp_path / "w.safetensors"), model_args=TINY_ARGS), seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pixel_that_is_not_finite_is_refused(value: float) -> None:
    pixels = random_images().pixels.clone()
    pixels[3, 1, 5, 5] = value
    with pytest.raises(DataError, match="NaN or infinity"):
        CalibrationSet(pixels=pixels, names=("x",) * len(pixels), sha256="")


def test_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="no image"):
        CalibrationSet(pixels=torch.zeros(0, 3, 16, 16), names=(), sha256="")


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_overflows_is_refused_and_the_stage_named(images: CalibrationSet, method: str) -> None:
    """Finite weights whose products are not: 1e30 squared is beyond float32."""
    loaded = tiny_vit()
    for part in ("fc1", "fc2"):
        linear(loaded, f"blocks.1.mlp.{part}").weight.fill_(1e30)
    with pytest.raises(DataError, match=r"NaN or infinity.*blocks\.1") as caught:
        calibrated_bundle(loaded, images, tiny_spec(method=method))
    assert "checkpoint" in caught.value.fix
