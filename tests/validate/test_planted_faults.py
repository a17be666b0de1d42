"""On honest graphs every gate passes, on 20 seeds; every planted fault fails the gate and is named where it is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from parity_fixtures import damaged
from parity_plants import plants
from tiny_swin import SIZE, tiny_swin
from tiny_vit import calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import Tensor, nn

from erq_export.contract.bundle import Bundle
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.parity import ParityReport
from erq_export.contract.targets import named
from erq_export.exporters.onnx.write import lowered, marker_graph, rebound, save
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.check import check_parity
from erq_export.validate.parity.first import differences
from erq_export.validate.parity.reproduce import reproduction

MODELS: dict[str, tuple[Callable[..., Loaded], int, str]] = {
    "vit": (tiny_vit, 16, "blocks.1"),
    "swin": (tiny_swin, SIZE, "layers.0.blocks.1"),
}
# Model, target, attention: both carriers, both kinds of attention, both families.
CASES = [("vit", "onnx", "fp16"), ("vit", "tensorrt", "int8"), ("swin", "onnx", "fp16")]
SEEDS = 20


@dataclass(frozen=True)
class Deployed:
    """A graph with all that it is held against."""

    bundle: Bundle
    reference: nn.Module
    path: Path
    manifest: GraphManifest
    pixels: Tensor

    def report(self, path: Path | None = None) -> ParityReport:
        return check_parity(
            self.reference, path or self.path, self.manifest, self.bundle.layers, self.pixels, threads=1, draws=3
        )


@cache
def traced(model: str, attention: str) -> ir.Model:
    """One trace serves all seeds."""
    return marker_graph(calibrated(model, "onnx", attention, 0).deployed())


def calibrated(model: str, target: str, attention: str, seed: int) -> Bundle:
    make, size, _ = MODELS[model]
    asked = tiny_spec("w4a4", (target,), method="rtn", attention=attention)
    return calibrated_bundle(make(seed=seed), random_images(size=size, seed=seed), asked)


def deployed(folder: Path, model: str, target: str, attention: str, seed: int = 0) -> Deployed:
    bundle, size = calibrated(model, target, attention, seed), MODELS[model][1]
    markers = rebound(traced(model, attention), bundle.deployed())
    assert markers is not None
    graph, manifest = lowered(markers, named(target), None)
    path = folder / f"{model}-{target}-{attention}-{seed}.onnx"
    save(graph, path)
    pixels = random_images(64 // size, size=size, seed=1000 + seed).pixels  # 4 for a ViT, 2 for a Swin: more tokens
    return Deployed(bundle, reference_model(bundle), path, manifest, pixels)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Deployed]:
    folder = tmp_path_factory.mktemp("honest")
    return {case: deployed(folder, *case) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_every_gate_passes_on_honest_graphs(tmp_path: Path, case: tuple[str, str, str]) -> None:
    """Every block has an end of its own in the file, and a limit that tells; a head of 4 rows has few codes to move."""
    for seed in range(SEEDS):
        report = deployed(tmp_path, *case, seed).report()
        assert report.problems() == [], seed
        assert differences(report) == []
        assert report.constants.n > 9 * len(report.layers)
        expected = ["embed", "blocks.0", "blocks.1", "head"]
        if case[0] == "swin":
            first, second = ([f"layers.{i}.blocks.{j}" for j in range(2)] for i in range(2))
            expected = ["embed", *first, "layers.1.downsample", *second, "head"]
        assert [block.path for block in report.blocks] == expected
        assert max(block.limit for block in report.blocks[:-1]) < 0.1, seed
        assert all(block.floor.relative_l2 > 0 for block in report.blocks), seed


@pytest.mark.parametrize("case", CASES, ids=" ".join)
@pytest.mark.parametrize("name", plants("", zero_points=True, integer_attention=True))
def test_a_planted_fault_fails_and_is_named(
    honest: dict[tuple[str, str, str], Deployed], tmp_path: Path, name: str, case: tuple[str, str, str]
) -> None:
    """By block, site and kind, as the first difference; and its piece, run again, shows it."""
    file, block = honest[case], MODELS[case[0]][2]
    plant = plants(block, zero_points=case[1] == "onnx", integer_attention=case[2] == "int8")[name]
    planted = damaged(file.path, tmp_path / "planted.onnx", plant.damage)
    report = file.report(planted)
    found = differences(report)
    assert found, "the gate passes"
    first = found[0]
    assert (first.block, first.site, first.kind) == (block, plant.site, plant.kind), report.problems()
    assert {d.says for d in found} == set(report.problems())
    if plant.coarse:
        assert [b.path for b in report.blocks if b.problems()] == [block]
    kept = reproduction(file.reference, ir.load(planted), file.manifest, report, first, file.pixels)
    assert kept is not None
    (output,) = kept.expected
    assert kept.found[output].shape == kept.expected[output].shape
    if not plant.fine:
        assert not torch.equal(kept.found[output].float(), kept.expected[output].float())
