"""The loop: every layer sees the full-precision model's inputs; what is left is legal, finite and what is deployed."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from tiny_vit import N_IMAGES, TINY_LAYERS, calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import Tensor, nn

from erq_export.affine import fake_quantize
from erq_export.bundle import Bundle
from erq_export.calibrate.data import CalibrationSet
from erq_export.calibrate.erq import Erq
from erq_export.calibrate.loop import CHUNK, calibrate
from erq_export.calibrate.method import Problem, Solution
from erq_export.calibrate.moments import Moments
from erq_export.calibrate.ranges import PATCH_BITS
from erq_export.calibrate.rtn import RoundToNearest
from erq_export.models.family import submodule
from erq_export.models.loading import Loaded
from erq_export.quantized import quant_linears
from erq_export.spec import QuantSpec

METHODS: dict[str, type[Erq] | type[RoundToNearest]] = {"erq": Erq, "rtn": RoundToNearest}
TARGETS = [("onnx",), ("onnx", "tensorrt-rtx")]
BITS = ["w2a3", "w4a4", "w8a8"]
EVERYWHERE = pytest.mark.parametrize("targets", TARGETS, ids="+".join)


def recorded(
    monkeypatch: pytest.MonkeyPatch, spec: QuantSpec, images: CalibrationSet
) -> tuple[Bundle, dict[str, Problem], dict[str, Solution]]:
    """A calibration, with the problem that each layer posed and the solution it was given."""
    problems: list[Problem] = []
    solutions: list[Solution] = []
    solve = METHODS[spec.method].solve

    def record(self: Any, problem: Problem) -> Solution:
        problems.append(problem)
        solutions.append(solve(self, problem))
        return solutions[-1]

    monkeypatch.setattr(METHODS[spec.method], "solve", record)
    bundle = calibrated_bundle(tiny_vit(), images, spec)
    paths = tuple(bundle.layers)
    return bundle, dict(zip(paths, problems, strict=True)), dict(zip(paths, solutions, strict=True))


def float_model(bundle: Bundle, problems: dict[str, Problem]) -> nn.Module:
    """The full-precision model that was calibrated, of which nothing was ever quantized: the norms as they were folded,
    the weights as they were posed."""
    model = tiny_vit().model
    posed = {f"{path}.{name}": getattr(p, name).float() for path, p in problems.items() for name in ("weight", "bias")}
    model.load_state_dict(bundle.leftovers | posed)
    return model


@torch.no_grad()
def site_inputs(model: nn.Module, images: CalibrationSet) -> dict[str, list[Tensor]]:
    """One forward of the whole model, hooks everywhere: each layer's inputs, chunk by chunk of (rows, k)."""
    seen: dict[str, list[Tensor]] = {path: [] for path in TINY_LAYERS}
    for path, chunks in seen.items():
        model.get_submodule(path).register_forward_pre_hook(
            lambda _module, args, chunks=chunks: chunks.append(args[0].flatten(0, -2))
        )
    for pixels in images.pixels.split(CHUNK):
        model(pixels)
    return seen


@EVERYWHERE
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", METHODS)
def test_moments_are_those_of_one_full_precision_forward(
    monkeypatch: pytest.MonkeyPatch, images: CalibrationSet, method: str, bits: str, targets: tuple[str, ...]
) -> None:
    """To the bit, since the same chunks go through the same operators: at 2 bits upstream as at 8."""
    bundle, problems, _ = recorded(monkeypatch, tiny_spec(bits, targets, method=method), images)
    for path, chunks in site_inputs(float_model(bundle, problems), images).items():
        moments = Moments.zero(chunks[0].shape[1], bias=True)
        for x in chunks:
            moments.add(x, fake_quantize(x, bundle.layers[path].act))
        assert moments.n_rows == problems[path].moments.n_rows
        for name in ("G", "D", "C"):
            assert torch.equal(getattr(problems[path].moments, name), getattr(moments, name)), (path, name)


@pytest.mark.parametrize("method", METHODS)
def test_the_float_model_is_still_the_one_given(
    monkeypatch: pytest.MonkeyPatch, images: CalibrationSet, method: str
) -> None:
    """Folding keeps the function: 1e-5 of the largest output in float32, through two blocks. rtn folds nothing."""
    bundle, problems, _ = recorded(monkeypatch, tiny_spec(method=method), images)
    model, original = float_model(bundle, problems), tiny_vit().model
    with torch.no_grad():
        got, expected = model(images.pixels), original(images.pixels)
    assert float((got - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    before, after = original.state_dict(), model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    folded = {
        f"blocks.{i}.{module}.{name}"
        for i in range(2)
        for module in ("norm1", "attn.qkv", "norm2", "mlp.fc1")
        for name in ("weight", "bias")
    }
    assert changed == (folded if method == "erq" else set())


@pytest.mark.parametrize("method", METHODS)
def test_statistics_are_the_errors_of_the_stored_rows(
    monkeypatch: pytest.MonkeyPatch, images: CalibrationSet, method: str
) -> None:
    """Recomputed row by row in float64 from what was deployed. The moments' products are float32: an error that is 1e-3
    of the energy is known to about 1e-3 of itself."""
    bundle, problems, _ = recorded(monkeypatch, tiny_spec(method=method), images)
    for path, chunks in site_inputs(float_model(bundle, problems), images).items():
        x, layer, problem = torch.cat(chunks).double(), bundle.layers[path], problems[path]
        x_hat = fake_quantize(x.float(), layer.act).double()
        y = x @ problem.weight.T + problem.bias
        quantized = {
            "error_inputs": x_hat @ problem.weight.T + problem.bias,
            "error": x_hat @ layer.weight.double().T + layer.bias.double(),
        }
        stated = bundle.statistics[path]
        assert stated["n_rows"] == len(x)
        for name, y_hat in quantized.items():
            assert stated[name] == pytest.approx(float((y_hat - y).square().sum() / y.square().sum()), rel=2e-3)


@EVERYWHERE
@pytest.mark.parametrize("bits", BITS)
def test_erq_leaves_less_error_than_rounding_in_every_layer(
    images: CalibrationSet, bits: str, targets: tuple[str, ...]
) -> None:
    erq, rtn = (
        calibrated_bundle(tiny_vit(), images, tiny_spec(bits, targets, method=method)).statistics
        for method in ("erq", "rtn")
    )
    for path in TINY_LAYERS:
        assert 0 <= erq[path]["error"] < rtn[path]["error"], path
        assert erq[path]["error"] < erq[path]["error_nearest"], path
        assert rtn[path]["error"] == rtn[path]["error_nearest"], path


def logits(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(pixels)
    return out


@pytest.mark.parametrize("bits", BITS)
def test_erq_is_nearer_to_the_float_model_on_images_it_has_not_seen(images: CalibrationSet, bits: str) -> None:
    unseen = random_images(32, seed=99).pixels
    exact = logits(tiny_vit().model, unseen)
    errors = {
        method: float((logits(calibrated_bundle(tiny_vit(), images, tiny_spec(bits, method=method)).reference(), unseen)
                       - exact).square().mean())
        for method in METHODS
    }  # fmt: skip
    assert errors["erq"] < 0.9 * errors["rtn"]


def assert_legal(bundle: Bundle, spec: QuantSpec) -> None:
    """Every integer in its designed range and container, every scale exact where a target needs it, all finite."""
    for path, layer in bundle.layers.items():
        assert (layer.w_bits, layer.a_bits) == (spec.bits.w, PATCH_BITS if path == "patch_embed.proj" else spec.bits.a)
        q, qmin = layer.weight_q.int(), layer.weight_qmin[:, None].int()
        assert bool(((q >= qmin) & (q <= qmin + 2**layer.w_bits - 1)).all()), path
        assert bool(((qmin >= -128) & (qmin <= 0) & (qmin + 2**layer.w_bits - 1 <= 127)).all()), path
        assert -(2**layer.a_bits) < float(layer.act.qmin) <= 0 <= float(layer.act.qmax), path
        assert float(layer.act.qmax - layer.act.qmin) == 2**layer.a_bits - 1, path
        assert float(layer.act.scale) > 0, path
        assert bool((layer.weight_scale > 0).all()), path
        if spec.rules.half_scales:
            assert torch.equal(layer.act.scale.half().float(), layer.act.scale), path
            exponents = range(-24, 16)
            assert any(exact_ratios(layer.weight_scale, 2.0**e) for e in exponents), path
        if layer.a_bits == 8 and not spec.rules.offset_8bit:
            assert float(layer.act.qmin) == -128, path
        for tensor in (layer.weight_scale, layer.bias, layer.act.scale):
            assert bool(torch.isfinite(tensor).all()), path
    assert all(bool(torch.isfinite(t).all()) for t in bundle.leftovers.values())
    assert all(0 <= v < float("inf") for row in bundle.statistics.values() for v in row.values())


def exact_ratios(scale: Tensor, s0: float) -> bool:
    ratio = scale.double() / s0
    return float(ratio.max()) <= 1 and torch.equal(ratio.half().double(), ratio)


@EVERYWHERE
@pytest.mark.parametrize("bits", [*BITS, "w3a8", "w8a3"])
@pytest.mark.parametrize("method", METHODS)
def test_what_was_calibrated_is_legal_and_is_what_the_bundle_rebuilds(
    images: CalibrationSet, method: str, bits: str, targets: tuple[str, ...]
) -> None:
    loaded, spec = tiny_vit(), tiny_spec(bits, targets, method=method)
    bundle = calibrated_bundle(loaded, images, spec)
    assert tuple(bundle.layers) == TINY_LAYERS
    assert_legal(bundle, spec)
    x = random_images(5, seed=3).pixels
    assert torch.equal(logits(loaded.model, x), logits(bundle.reference(), x))
    for path, module in quant_linears(loaded.model).items():
        assert torch.equal(module.weight_q, bundle.layers[path].weight_q)


def test_more_bits_are_nearer(images: CalibrationSet) -> None:
    exact = logits(tiny_vit().model, images.pixels)
    errors = [
        float((logits(calibrated_bundle(tiny_vit(), images, tiny_spec(bits)).reference(), images.pixels) - exact)
              .square().sum() / exact.square().sum())
        for bits in BITS
    ]  # fmt: skip
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < 1e-2 < errors[0]


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


@EVERYWHERE
@pytest.mark.parametrize("bits", ["w2a3", "w8a8"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_inputs_are_calibrated_like_any_other(odd: str, bits: str, targets: tuple[str, ...]) -> None:
    """Legal, finite, equal to the reference; and at 8 bits still the float model, to 2 % of its output's energy."""
    args, damage, data = ODD[odd]
    loaded, untouched = tiny_vit(**args), tiny_vit(**args)
    damage(loaded)
    damage(untouched)
    spec, images = tiny_spec(bits, targets), data()
    bundle = calibrated_bundle(loaded, images, spec)
    assert_legal(bundle, spec)
    got, exact = logits(loaded.model, images.pixels), logits(untouched.model, images.pixels)
    assert torch.equal(got, logits(bundle.reference(), images.pixels))
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


def test_the_bias_and_the_grid_of_a_solution_are_what_is_stored(
    monkeypatch: pytest.MonkeyPatch, images: CalibrationSet
) -> None:
    bundle, _, solutions = recorded(monkeypatch, tiny_spec(), images)
    for path, solution in solutions.items():
        layer = bundle.layers[path]
        assert torch.equal(layer.weight_q.double(), solution.q)
        assert torch.equal(layer.bias, solution.bias.float())
        assert torch.equal(layer.weight_scale[:, None], solution.grid.scale)
        assert torch.equal(layer.weight_qmin[:, None].float(), solution.grid.qmin)


def test_the_images_are_read_only_and_progress_names_every_stage(images: CalibrationSet) -> None:
    before, heard = images.pixels.clone(), []
    device = torch.device("cpu")
    calibrate(tiny_vit(), images, tiny_spec(), device=device, progress=lambda *step: heard.append(step))
    assert torch.equal(images.pixels, before)
    assert heard == [("embed", 0, 4), ("blocks.0", 1, 4), ("blocks.1", 2, 4), ("head", 3, 4), ("done", 4, 4)]


def test_the_bundle_says_what_it_was_made_from(bundle: Bundle, images: CalibrationSet) -> None:
    assert bundle.data == images.to_json()
    assert bundle.identity.weights == "random"
    assert {"erq-export", "torch", "timm"} <= bundle.versions.keys()


def test_fewer_calibration_images_are_used_as_given() -> None:
    bundle = calibrated_bundle(tiny_vit(), random_images(3), tiny_spec())
    assert {row["n_rows"] for row in bundle.statistics.values()} == {3 * 16, 3 * 17, 3}
    assert N_IMAGES % CHUNK  # so the other tests meet a last chunk that is smaller
