"""Parity finds nothing in an honest export, and finds each damage at the level, and in the layer, where it is."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from msgspec import structs
from parity_fixtures import PATHS, Exported, add_constant, constant, damaged, exported, images, lower_to, quantized
from torch import Tensor, nn

from erq_export.contract.errors import DataError
from erq_export.contract.formats.affine import Grid
from erq_export.contract.manifest import by_path
from erq_export.contract.parity import ParityReport
from erq_export.contract.quantized import QuantizedLayer, QuantLinear, quant_linears
from erq_export.contract.records import decode, encode
from erq_export.validate.metrics.distance import relative_l2, relative_max
from erq_export.validate.parity.check import check_parity
from erq_export.validate.parity.executed import INTEGER_GEMMS, executed_ops, float_matmuls_among_sites
from erq_export.validate.parity.floor import LARGEST_E
from erq_export.validate.parity.layers import check_accumulators, check_layer
from erq_export.validate.parity.model import check_model, noise_floor
from erq_export.validate.parity.teacher import teach
from erq_export.validate.runners import TorchRunner

TARGETS = ("onnx", "tensorrt-rtx")
N_IMAGES, N_PATCHES, D, CLASSES = 3, 16, 32, 5
CPU = torch.device("cpu")
Change = Callable[[ir.Graph], None]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return exported(tmp_path_factory.mktemp("parity"), *TARGETS)


@pytest.fixture(scope="module")
def honest(files: dict[str, Exported]) -> dict[str, ParityReport]:
    return {target: report(file) for target, file in files.items()}


def report(file: Exported, path: Path | None = None, **changes: Any) -> ParityReport:
    given: dict[str, Any] = {"manifest": file.manifest, "bundle_layers": file.layers, "pixels": images(N_IMAGES)}
    return check_parity(file.reference, path or file.path, **given | {"threads": 1} | changes)


@pytest.mark.parametrize("target", TARGETS)
def test_an_honest_export_is_equal_where_equality_is_claimed(
    files: dict[str, Exported], honest: dict[str, ParityReport], target: str
) -> None:
    found, layers = honest[target], files[target].layers
    assert found.problems() == []
    assert tuple(layer.path for layer in found.layers) == PATHS
    rows = N_IMAGES * N_PATCHES
    assert [layer.codes.n for layer in found.layers] == [rows * 48, *[rows * D] * 3, rows * 2 * D, N_IMAGES * D]
    assert found.layers[-1].accumulators.n == N_IMAGES * CLASSES
    for layer in found.layers:
        assert (layer.codes.mismatches, layer.codes.max_lsb, layer.accumulators.mismatches) == (0, 0, 0)
        assert layer.accumulators.beyond == 0  # Σ|q·w| ≤ 64 · 128 · 8
    assert found.weights.n_integers == sum(layer.weight_q.numel() for layer in layers.values())
    assert decode(ParityReport, encode(found), source="parity.json") == found
    assert f"on {N_IMAGES} images and {len(PATHS)} layers" in found.says()


def test_the_float32_graph_runs_in_integers_and_errs_by_rounding(honest: dict[str, ParityReport]) -> None:
    found = honest["onnx"]
    assert found.executed == dict.fromkeys(PATHS, "MatMulIntegerToFloat")
    assert {layer.output.kernel for layer in found.layers} == {"MatMulIntegerToFloat"}
    assert max(layer.output.relative_l2 for layer in found.layers) < 16 * 2**-24
    assert found.between.worst < 16 * 2**-24
    assert set(found.between.relative_l2) == set(PATHS)  # the head's output is the model's: nothing after it


def test_the_float16_graph_errs_by_its_own_rounding(honest: dict[str, ParityReport]) -> None:
    found = honest["tensorrt-rtx"]
    worst = max(layer.output.relative_l2 for layer in found.layers)
    assert 2**-14 < worst < 2**-10  # unit roundoff 2⁻¹¹: below it would not be float16, far above it would be wrong
    assert found.executed == {}  # ONNX Runtime is not what that graph is for
    assert set(found.between.relative_l2) == {*PATHS, "logits"}


# Each damage: target, the change, the layer blamed, words of the blame. Unlisted layers must not be blamed.
DAMAGES: dict[str, tuple[str, Change, str, str]] = {
    "input scale": ("onnx", lambda g: constant(g, "fc1.act_scale_q", lambda s: s * 1.05), "fc1", "input codes"),
    "output scale": ("onnx", lambda g: constant(g, "fc1.act_scale_dq", lambda s: s * 1.001), "fc1", "output off"),
    "zero point": ("onnx", lambda g: constant(g, "qkv.act_zero_point", lambda z: z + 1), "qkv", "input codes"),
    "clip too narrow": ("onnx", lambda g: constant(g, "fc2.act_hi", lambda h: 0.8 * h), "fc2", "input codes"),
    "one channel's scale": ("onnx", lambda g: constant(g, "proj.weight_scale", one(1.01)), "proj", "output off"),
    "bias": ("onnx", lambda g: constant(g, "qkv.bias", lambda b: b + 0.01), "qkv", "output off"),
    "not a number": (
        "onnx",
        lambda g: constant(g, "fc2.bias", one(math.nan)),
        "fc2",
        "output not finite; 1e-05",
    ),
    "one integer": ("onnx", lambda g: constant(g, "fc1.weight_q", plus_one), "fc1", "1 weight integers"),
    "one integer, summed": ("onnx", lambda g: constant(g, "fc1.weight_q", plus_one), "fc1", "integer sums"),
    "half: input scale": ("tensorrt-rtx", lambda g: constant(g, "proj.act_scale_q", one(1.05)), "proj", "input codes"),
    "half: ratio": ("tensorrt-rtx", lambda g: constant(g, "head.weight_ratio", one(1.05)), "head", "output off"),
    "half: one integer": ("tensorrt-rtx", lambda g: constant(g, "head.weight_q", plus_one), "head", "integer sums"),
}


def one(factor: float) -> Callable[[Any], Any]:
    """Multiply the first entry."""

    def change(array: Any) -> Any:
        array.reshape(-1)[0] *= factor
        return array

    return change


def plus_one(q: Any) -> Any:
    """Move the first integer by one, staying in 4 bits."""
    q.reshape(-1)[0] += 1 if q.reshape(-1)[0] < 7 else -1
    return q


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_where_it_is(files: dict[str, Exported], tmp_path: Path, name: str) -> None:
    target, change, blamed, words = DAMAGES[name]
    problems = report(files[target], damaged(files[target].path, tmp_path / "damaged.onnx", change)).problems()
    assert any(p.startswith(f"{blamed}: ") and words in p for p in problems), problems
    others = {p.split(":")[0] for p in problems} - {blamed, "onnxruntime"}
    assert not others & set(PATHS), problems


def test_a_wrong_zero_point_shifts_every_code_that_can_move(files: dict[str, Exported], tmp_path: Path) -> None:
    """One at the end of its grid stays there, by its Clip."""
    file = files["onnx"]
    path = damaged(file.path, tmp_path / "z.onnx", lambda g: constant(g, "qkv.act_zero_point", lambda z: z + 1))
    codes = next(layer.codes for layer in report(file, path).layers if layer.path == "qkv")
    assert codes.max_lsb == 1
    assert 0.99 * codes.n < codes.mismatches < codes.n


def test_a_float_operator_is_blamed_on_the_layers_behind_it(files: dict[str, Exported], tmp_path: Path) -> None:
    file = files["onnx"]
    path = damaged(file.path, tmp_path / "norm.onnx", lambda g: constant(g, "norm2.weight", lambda w: w * 1.0001))
    found = report(file, path)
    assert [p.split(":")[0] for p in found.between.problems()] == ["fc1"]  # behind fc1 its true output is fed again
    assert all(not layer.problems() for layer in found.layers)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_float_copy_of_a_weight_is_found(
    files: dict[str, Exported], tmp_path: Path, rounded: bool, transposed: bool, dtype: torch.dtype
) -> None:
    file = files["onnx"]
    weight = file.layers["fc1"].weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight = weight if rounded else weight + 0.1 * weight.std() * noise  # like the weight before it was quantized
    weight = (weight.T if transposed else weight).contiguous().to(dtype)
    path = damaged(file.path, tmp_path / "copy.onnx", lambda g: add_constant(g, "left.over", weight.numpy()))
    assert report(file, path).weights.float_copies == {"left.over": "fc1"}


def test_an_unrelated_tensor_of_a_weights_size_is_no_copy(files: dict[str, Exported], tmp_path: Path) -> None:
    file = files["onnx"]
    weight = file.layers["fc1"].weight
    other = weight.flip(0).contiguous()
    path = damaged(file.path, tmp_path / "other.onnx", lambda g: add_constant(g, "other", other.numpy()))
    assert report(file, path).weights.float_copies == {}


def test_a_layer_without_integers_is_missing(files: dict[str, Exported]) -> None:
    file = files["onnx"]
    manifest = structs.replace(file.manifest, sites=tuple(s for s in file.manifest.sites if s.path != "head"))
    found = report(file, manifest=manifest)
    assert found.weights.missing == ("head",)
    assert any(p.startswith("head: the bundle has this layer") for p in found.problems())


def test_a_claimed_layer_in_float_is_a_problem(files: dict[str, Exported]) -> None:
    """ONNX Runtime fuses no float16 Q/DQ: claimed for it, that graph breaks its word in every layer."""
    half, full = files["tensorrt-rtx"], files["onnx"]
    assert float_matmuls_among_sites(half.path, half.manifest) == list(PATHS)
    assert float_matmuls_among_sites(full.path, full.manifest) == []
    problems = report(half, manifest=structs.replace(half.manifest, target="onnx")).problems()
    assert [p for p in problems if "multiplies it in float (MatMul)" in p and p.startswith("fc1:")]


def test_executed_operators_are_counted(files: dict[str, Exported]) -> None:
    ops = executed_ops(files["onnx"].path)
    assert sum(n for op, n in ops.items() if op in INTEGER_GEMMS) == len(PATHS)
    assert "DequantizeLinear" not in ops


def test_a_manifest_of_another_file_is_refused(files: dict[str, Exported]) -> None:
    manifest = files["onnx"].manifest
    site = structs.replace(manifest.sites[0], codes="elsewhere")
    with pytest.raises(DataError, match=r"patch\.proj: the file has no such piece"):
        report(files["onnx"], manifest=structs.replace(manifest, sites=(site,)))


def test_tensors_beside_the_file_change_nothing(
    files: dict[str, Exported], honest: dict[str, ParityReport], tmp_path: Path
) -> None:
    path = tmp_path / "beside.onnx"
    ir.save(ir.load(files["onnx"].path), path, external_data="beside.data")
    assert (tmp_path / "beside.data").stat().st_size > honest["onnx"].weights.n_integers / 2  # the small ones stay
    assert report(files["onnx"], path) == honest["onnx"]


def test_the_input_is_rounded_before_either_side_sees_it(files: dict[str, Exported]) -> None:
    """proj gets float16 in the float16 graph: against codes of the unrounded input, some would differ."""
    file, seen = files["tensorrt-rtx"], {}
    teach(file.reference, images(32), lambda path, x, _y: seen.update({path: x}))
    x, layer = seen["proj"], quant_linears(file.reference)["proj"]
    assert (layer.grid.quantize(x) != layer.grid.quantize(x.half().float())).any()
    found = check_layer(ir.load(file.path).graph, by_path(file.manifest.sites)["proj"], layer, x)
    assert found.codes.mismatches == 0


def test_the_teacher_shows_every_layer_once_and_leaves_no_hook(files: dict[str, Exported]) -> None:
    reference, shown = files["onnx"].reference, []
    logits = teach(reference, images(2), lambda path, x, y: shown.append((path, x.shape[-1], y.shape[-1])))
    layers = quant_linears(reference)
    assert shown == [(path, layer.weight_q.shape[1], layer.weight_q.shape[0]) for path, layer in layers.items()]
    assert torch.equal(logits, reference(images(2)))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(reference, images(1), stop)
    assert not any(layer._forward_hooks for layer in layers.values())


def test_progress_names_every_layer(files: dict[str, Exported]) -> None:
    told: list[tuple[str, int, int]] = []
    report(files["onnx"], pixels=images(1), progress=lambda *step: told.append(step))
    assert [name for name, _, _ in told] == [*PATHS, "between the layers", "whole model", "whole model, ties apart"]
    assert [done for _, done, _ in told] == [*range(len(PATHS)), *[len(PATHS)] * 3]


class OneLayer(nn.Module):
    """Full-scale products: every weight and every input at the end of its 8-bit range."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.fc = nn.Linear(k, 2)
        nn.init.constant_(self.fc.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(2))  # (B, 3, 2)


@pytest.mark.parametrize(("side", "beyond"), [(32, False), (33, True)])
def test_sums_beyond_float32_are_not_claimed(tmp_path: Path, side: int, beyond: bool) -> None:
    """127 · 127 · 1024 < 2²⁴ < 127 · 127 · 1089."""
    pixels = torch.ones(1, 3, side, side)
    model = OneLayer(side * side).requires_grad_(False)
    layers = quantized(model, ("fc",), pixels, bits=8)
    file = lower_to(tmp_path, model, layers, (3, side, side), "onnx")["onnx"]
    layer, graph = quant_linears(model)["fc"], ir.load(file.path).graph
    found = check_accumulators(graph, by_path(file.manifest.sites)["fc"], layer, pixels.flatten(2))
    assert (found.n, found.beyond, found.mismatches) == ((0, 6, 0) if beyond else (6, 0, 0))


class Staircase(nn.Module):
    """Logits that move only when a pixel crosses a multiple of `step`."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.round(pixels / self.step).flatten(1) * self.step


def test_the_floor_is_zero_until_something_crosses_an_edge() -> None:
    pixels = torch.full((1, 3, 4, 4), 0.7)  # 0.2 steps from the next edge, 0.5
    coarse, fine = Staircase(1.0), Staircase(1e-4)
    still = noise_floor(coarse, pixels, coarse(pixels))
    assert still.relative_l2 == 0
    assert still.perturbation == pytest.approx(LARGEST_E)  # bounded
    moved = noise_floor(fine, pixels, fine(pixels))
    assert moved.relative_l2 > 0
    assert 1e-6 < moved.perturbation < LARGEST_E  # raised, and no further than needed
    assert noise_floor(fine, pixels, fine(pixels), start=moved.perturbation / 10).perturbation == pytest.approx(
        moved.perturbation
    )


def test_the_floor_is_a_median_of_seeded_draws(files: dict[str, Exported]) -> None:
    reference, pixels = files["onnx"].reference, images(4)
    logits = TorchRunner(reference, CPU).logits(pixels)
    floor = noise_floor(reference, pixels, logits, start=1e-3, draws=5)
    assert floor.relative_l2 == sorted(floor.draws)[2] > 0
    assert floor == noise_floor(reference, pixels, logits, start=1e-3, draws=5)
    assert floor.draws[1:] == noise_floor(reference, pixels, logits, start=1e-3, draws=4, seed=1).draws


def test_noise_that_the_first_quantizer_swallows_still_gives_a_floor(files: dict[str, Exported]) -> None:
    """Pixels that lie in the middle of their steps do not feel 1e-3; the layers behind them do."""
    reference = files["onnx"].reference
    first = next(iter(quant_linears(reference).values()))
    pixels = torch.round(images(2) / first.act_scale) * first.act_scale
    logits = TorchRunner(reference, CPU).logits(pixels)
    assert relative_l2(TorchRunner(reference, CPU).logits(pixels * (1 + 1e-4)), logits) == 0
    assert noise_floor(reference, pixels, logits, start=1e-3).relative_l2 > 0


class Chain(nn.Module):
    """Quantizers in a row on the integers −128 … 127, `shift` added behind each; every layer is otherwise the identity."""

    def __init__(self, n: int, shift: float) -> None:
        super().__init__()
        layer = QuantizedLayer(
            weight_q=torch.eye(48, dtype=torch.int8),
            weight_scale=torch.ones(48),
            weight_qmin=torch.zeros(48, dtype=torch.int16),
            bias=torch.full((48,), shift),
            act=Grid(scale=torch.tensor(1.0), qmin=torch.tensor(-128.0), qmax=torch.tensor(127.0)),
            w_bits=8,
            a_bits=8,
        )
        self.layers = nn.Sequential(*(QuantLinear(str(i), layer) for i in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))  # (B, 48)


@pytest.mark.parametrize(("n", "shift", "moves"), [(1, 0.4999, False), (2, 0.0, False), (2, 0.4999, True)])
def test_noise_reaches_exactly_the_layers_near_an_edge(n: int, shift: float, moves: bool) -> None:
    """Pixels lie at 5, far from an edge; behind a shift the second layer's inputs lie at 5.4999, 2e-5 from one."""
    model, pixels = Chain(n, shift), torch.full((1, 3, 4, 4), 5.0)
    logits = model(pixels)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(pixels * (1 + LARGEST_E * noise)), logits)  # the first quantizer swallows it
    floor = noise_floor(model, pixels, logits)
    assert (floor.relative_l2 > 0) == moves
    assert (floor.perturbation < LARGEST_E / 2) == moves


def test_the_floor_leaves_the_reference_as_it_was(files: dict[str, Exported]) -> None:
    reference, pixels = files["onnx"].reference, images(4)
    before = reference(pixels)
    assert len(set(noise_floor(reference, pixels, before, start=1e-3).draws)) > 1
    assert torch.equal(reference(pixels), before)


class Off:
    """The reference with its logits moved by a share of their norm."""

    name = "off"

    def __init__(self, reference: nn.Module, share: float) -> None:
        self.reference, self.share = reference, share

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        return self.reference(pixels) * (1 + self.share)


def test_the_verdict_is_a_multiple_of_the_floor(files: dict[str, Exported]) -> None:
    reference, pixels = files["onnx"].reference, images(4)

    def judged(share: float) -> list[str]:
        return check_model(reference, Off(reference, share), pixels, start=1e-3, factor=3).problems()

    limit = 3 * check_model(reference, Off(reference, 0.0), pixels, start=1e-3).floor.relative_l2
    assert judged(0.99 * limit) == []
    assert len(judged(1.01 * limit)) == 1
    assert len(judged(math.nan)) == 1


def test_distances_are_relative_and_never_lost_in_nan() -> None:
    want = torch.tensor([3.0, 4.0])
    assert relative_l2(torch.tensor([3.0, 4.5]), want) == pytest.approx(0.1)
    assert relative_max(torch.tensor([3.0, 4.5]), want) == pytest.approx(0.125)
    assert relative_l2(torch.tensor([3.0, math.nan]), want) == sys.float_info.max
    assert relative_max(torch.tensor([3.0, math.inf]), want) == sys.float_info.max
    assert relative_l2(torch.ones(4), torch.zeros(4)) == 2.0  # absolute where there is nothing to relate to


@pytest.mark.parametrize("floor", [1e-3, 0.2, 0.6, 0.9])
def test_zeros_fail_whatever_the_reference_does_to_itself(floor: float) -> None:
    """Trembling outputs y + floor·‖y‖·noise: above a floor of a sixth the error's limit would let zeros pass."""

    class Trembling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            y = torch.linspace(-1, 1, 64).expand(len(x), 64)
            self.calls += 1
            noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(self.calls))
            return y if self.calls == 1 else y + floor * y.norm() / 8 / len(x) ** 0.5 * noise

    class Nothing:
        name = "nothing"

        def logits(self, pixels: Tensor) -> Tensor:
            return torch.zeros(len(pixels), 64)

    class Honest:
        name = "honest"

        def logits(self, pixels: Tensor) -> Tensor:
            model = Trembling()
            model.calls = 100
            return model(pixels)

    pixels = torch.zeros(4, 3, 2, 2)
    wrong = check_model(Trembling(), Nothing(), pixels)
    assert wrong.problems()
    assert wrong.telling == (3 * wrong.floor.relative_l2 <= 0.5)
    assert check_model(Trembling(), Honest(), pixels).problems() == []
