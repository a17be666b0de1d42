"""The loop: every layer sees the full-precision model's inputs; what is left is legal, finite and what is deployed."""

import pytest
import torch
from legal import assert_legal
from tiny_vit import N_IMAGES, TINY_LAYERS, calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import Tensor, nn

from erq_export.calibrate.loop import CHUNK, calibrate
from erq_export.calibrate.moments import Moments
from erq_export.calibrate.setting import Setting
from erq_export.calibrate.solve.problem import Problem, Solution
from erq_export.contract.bundle import Bundle
from erq_export.contract.quantized import quant_linears
from erq_export.contract.spec import Quantization
from erq_export.data.calibration_set import CalibrationSet
from erq_export.models.rebuild import reference_model

METHODS = ("erq", "rtn")
TARGETS = [("onnx",), ("onnx", "tensorrt-rtx")]
BITS = ["w2a3", "w4a4", "w8a8"]
EVERYWHERE = pytest.mark.parametrize("targets", TARGETS, ids="+".join)


def recorded(
    monkeypatch: pytest.MonkeyPatch, spec: Quantization, images: CalibrationSet
) -> tuple[Bundle, dict[str, Problem], dict[str, Solution]]:
    """A calibration, with the problem that each layer posed and the solution it was given."""
    problems: list[Problem] = []
    solutions: list[Solution] = []
    solve = Setting.solve

    def record(self: Setting, problem: Problem) -> Solution:
        solution = solve(self, problem)
        if problem.halves is not None:  # else it is one of the halves' own, for the error on images not solved for
            problems.append(problem)
            solutions.append(solution)
        return solution

    monkeypatch.setattr(Setting, "solve", record)
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
            moments.add(x, bundle.layers[path].act.fake_quantize(x))
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
        for module in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1")
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
        x_hat = layer.act.fake_quantize(x.float()).double()
        y = x @ problem.weight.T + problem.bias
        quantized = {
            "error_inputs": x_hat @ problem.weight.T + problem.bias,
            "error": x_hat @ layer.weight.double().T + layer.bias.double(),
        }
        stated = bundle.statistics[path]
        assert stated.n_rows == len(x)
        for name, y_hat in quantized.items():
            assert getattr(stated, name) == pytest.approx(
                float((y_hat - y).square().sum() / y.square().sum()), rel=2e-3
            )


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
        assert 0 <= erq[path].error < rtn[path].error, path
        assert erq[path].error < erq[path].error_nearest, path
        assert rtn[path].error == rtn[path].error_nearest, path


def logits(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(pixels)
    return out


@pytest.mark.parametrize("bits", BITS)
def test_erq_is_nearer_to_the_float_model_on_images_it_has_not_seen(images: CalibrationSet, bits: str) -> None:
    unseen = random_images(32, seed=99).pixels
    exact = logits(tiny_vit().model, unseen)
    errors = {
        method: float((logits(reference_model(calibrated_bundle(tiny_vit(), images, tiny_spec(bits, method=method))), unseen)
                       - exact).square().mean())
        for method in METHODS
    }  # fmt: skip
    assert errors["erq"] < 0.9 * errors["rtn"]


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
    assert torch.equal(logits(loaded.model, x), logits(reference_model(bundle), x))
    for path, module in quant_linears(loaded.model).items():
        assert torch.equal(module.weight_q, bundle.layers[path].weight_q)


def test_more_bits_are_nearer(images: CalibrationSet) -> None:
    exact = logits(tiny_vit().model, images.pixels)
    errors = [
        float((logits(reference_model(calibrated_bundle(tiny_vit(), images, tiny_spec(bits))), images.pixels) - exact)
              .square().sum() / exact.square().sum())
        for bits in BITS
    ]  # fmt: skip
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < 1e-2 < errors[0]


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
    assert bundle.data == images.fingerprint
    assert bundle.identity.weights == "random"
    assert {"erq-export", "torch", "timm"} <= bundle.versions.keys()


def test_fewer_calibration_images_are_used_as_given() -> None:
    bundle = calibrated_bundle(tiny_vit(), random_images(3), tiny_spec())
    assert {row.n_rows for row in bundle.statistics.values()} == {3 * 16, 3 * 17, 3}
    assert N_IMAGES % CHUNK  # so the other tests meet a last chunk that is smaller
