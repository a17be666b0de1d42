"""A detector from the command line to engines and average precision: the stand-in, its own weights and scenes."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reports
import torch
from coco_folder import turned
from command_line import Erq
from detector_graphs import in_onnxruntime, suppress_more, unquantized
from html_page import Page

from erq_export.backends.tensorrt import available
from erq_export.contract.bench import BenchSpec
from erq_export.contract.engine import ENGINE, EngineRecord
from erq_export.contract.errors import EngineError
from erq_export.contract.followed import CODES
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.records import read
from erq_export.contract.report import Report
from erq_export.data.scenes import Scenes
from erq_export.flow import api, bench
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection import found as finding
from erq_export.flow.detection import make, ran
from erq_export.flow.detection import run as detector
from erq_export.flow.detection.executed import Executed
from erq_export.flow.detection.measure import Outcome
from erq_export.flow.job import read_run
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT
from erq_export.models.detectors.architecture import Size
from erq_export.validate.contestants import KINDS

N = 6  # pictures
IN_ONNX_RUNTIME = "onnx in ONNX Runtime"
PARTS = ("body", "box", "mask")
UPRIGHT = "256x192"
ON_CANVASES = (*PARTS, f"body-{UPRIGHT}")
RTX = available("tensorrt_rtx") is not None
NEEDS_RTX = pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
TARGETS = ["onnx", "tensorrt-rtx"][: 1 + RTX]
ASKED: dict[str, Any] = {
    **{"bits": "w4a4", "to": TARGETS, "calib": 2, "val_images": N},
    **{"capability": ("8.9",), "canvas": f"192x256,{UPRIGHT}"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A run on two canvases; its own scenes all lie on the first."""
    pytest.importorskip("faster_coco_eval")
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    api.run("shapes", **ASKED, out=folder, store=store)
    return folder


def test_every_part_is_a_graph_whose_layers_sums_and_float_operators_are_those_of_pytorch(out: Path) -> None:
    report = read(Report, OutputFolder(out).report)
    target = report.targets["onnx"]
    assert list(target.parts) == [*ON_CANVASES, "detector", f"detector-{UPRIGHT}"]
    assert report.problems == ()
    for name in ON_CANVASES:
        parity = target.parts[name].parity
        assert parity is not None
        assert parity.problems() == []
        assert (parity.codes.mismatches, parity.sums.mismatches) == (0, 0)
        assert parity.sums.n > 10_000
        assert len(parity.layers) == sum(target.parts[name].claims.gemm.values())
    compared = [len(target.parts[part].parity.layers) for part in PARTS if target.parts[part].parity]
    assert sum(compared) == len(report.layers) + 3 * 4  # levels
    assert set(target.executed) == {layer.path for layer in report.layers}
    assert target.parts[f"body-{UPRIGHT}"].claims == target.parts["body"].claims
    assert target.claims.gemm["int8"] == sum(target.parts[part].claims.gemm["int8"] for part in PARTS)


def test_what_is_found_is_judged_beside_the_float_detector(out: Path) -> None:
    found = read(Report, OutputFolder(out).report).detection
    assert found is not None
    assert (found.n_images, found.n_given, found.canvases) == (N, N, ((192, 256), (256, 192)))
    assert found.n_on == (N, 0)
    assert found.exact.box.ap > 30
    assert found.exact.box_change is None
    for judged in (found.reference, *found.graphs.values()):
        change = judged.box_change
        assert change is not None
        assert change.value == pytest.approx(judged.box.ap - found.exact.box.ap, abs=1e-6)
        assert change.low <= change.value <= change.high
    like, own = (kind[IN_ONNX_RUNTIME] for kind in (found.as_reference, found.trembling))
    assert like.n_pictures == N
    assert like.found / like.n > own.found / own.n - 0.25  # codes that round the other way, here and there


def test_one_graph_of_the_whole_finds_what_the_reference_finds_on_each_canvas(out: Path) -> None:
    """Ties apart. No scene lies on the upright canvas: there it is the calibration's pictures that are looked at."""
    parts = read(Report, OutputFolder(out).report).targets["onnx"].parts
    for name, n in (("detector", N), (f"detector-{UPRIGHT}", ASKED["calib"])):
        found = parts[name].followed
        assert found is not None
        assert (found.problems(), found.n_images) == ([], n)
        assert found.n_found > n
        assert found.ties[CODES].n > n * 1_000_000
    assert [name for name, part in parts.items() if part.followed is None] == list(ON_CANVASES)


def test_a_graph_of_the_whole_that_chooses_otherwise_fails(
    erq: Erq, out: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part knows of it, and average precision tells it hardly."""
    shutil.copytree(out, tmp_path / "out")
    suppress_more(tmp_path / "out" / "onnx" / "detector" / "model.onnx")
    monkeypatch.setattr(OutputFolder, "check_as_written", lambda *_: None)
    code, said = erq("validate", tmp_path / "out", "--store", store)
    assert code == 5, said
    assert "onnx/detector: ties apart, detections: the graph chooses otherwise" in said
    assert "FAILED" in (tmp_path / "out" / "report.md").read_text()


def test_the_page_says_it_and_shows_pictures(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert "box AP" in Page(page).first_line
    assert "detections of the whole in one graph" in Page(page).first_line
    assert page.count("data:image/jpeg;base64,") == 6
    text = (out / "report.md").read_text()
    assert "## Average precision on 6 pictures" in text
    assert "| reference | masks |" in text
    assert "## The whole in one graph" in text
    assert "erq-export bench ." in text


def test_it_is_measured_again_with_a_bound(erq: Erq, out: Path, store: Path) -> None:
    code, said = erq("validate", out, "--store", store, "--max-drop", "-100")
    assert code == 4, said
    assert "AP drops by" in said
    assert erq("validate", out, "--store", store)[0] == 0
    assert "box AP" in erq("inspect", out)[1]
    before = (out / "report.json").read_bytes()
    for words in (
        ("bench", out, "--batch", "8"),
        ("bench", out, "--against", "theirs.onnx"),
        ("validate", out, "--bisect"),
        ("build", out, "--twin"),
        ("compare", out, out.parent / "other"),
    ):
        code, said = erq(*words)
        assert (code, "is for classifiers, shapes is a detector" in said) == (2, True), said
    assert (out / "report.json").read_bytes() == before


def test_every_part_is_timed_beside_its_float_twin(erq: Erq, out: Path, store: Path, tmp_path: Path) -> None:
    """Given what one picture gives it at most; the section stays when the run is measured again."""
    shutil.copytree(out, tmp_path / "out")
    spec = BenchSpec(threads=(1,), samples=10, seconds=0.01, sittings=1)
    job, kinds = read_run(tmp_path / "out"), {"onnxruntime": KINDS["onnxruntime"]}
    with Store.at(store, explicit=True, say=print) as kept:
        found = bench.bench(job, tmp_path / "out", SILENT, store=kept, asked=spec, kinds=kinds)
    assert found.parts == {"body": 1, "box": 1000, "mask": 100, f"body-{UPRIGHT}": 1}
    lines = [line for line in found.lines if line.inputs == "resident"]
    assert [(line.subject, line.batch) for line in lines] == [
        (f"{what}/{part}", n) for part, n in found.parts.items() for what in ("float32", "onnx")
    ]
    for twin, ours in zip(lines[::2], lines[1::2], strict=True):
        assert twin.speedup is None
        assert ours.speedup is not None
        assert ours.speedup.than == twin.name
    assert found.skipped.keys() >= {"onnx/detector", f"onnx/detector-{UPRIGHT}"}
    assert "Proposals, pooling and suppression" in found.notes[0]
    code, said = erq("validate", tmp_path / "out", "--store", store)
    assert code == 0, said
    assert "onnx/box in onnxruntime" in (tmp_path / "out" / "report.md").read_text()


def test_what_cannot_be_timed_costs_no_report(
    out: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured beside is planted: the run `out` has the real thing."""
    measured = read(Report, out / "report.json").detection

    def fails(*_: object) -> None:
        raise EngineError("no room on the GPU", fix="a smaller canvas")

    monkeypatch.setattr(bench, "measure", fails)
    monkeypatch.setattr(detector, "measure", lambda *_: Outcome(parity={}, followed={}, detection=measured, not_run=[]))
    with pytest.raises(EngineError, match="no room"):
        api.run("shapes", **ASKED, bench=True, out=tmp_path / "out", store=store)
    assert read(Report, tmp_path / "out" / "report.json").detection == measured
    monkeypatch.setattr(bench, "measure", lambda *_: reports.bench(parts={"body": 1}))
    api.run("shapes", **ASKED, bench=True, out=tmp_path / "out", store=store, overwrite=True)
    assert "## Speed" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "bench.json").is_file()


def test_it_is_measured_on_another_folder_and_still_compared_on_its_own_picture(
    erq: Erq, out: Path, store: Path, tmp_path: Path
) -> None:
    Scenes(2, seed=9).write(tmp_path / "coco", "val2017")  # and no train2017
    own = read(Report, OutputFolder(out).report)
    code, said = erq("validate", out, "--store", store, "--coco", tmp_path / "coco")
    assert code == 0, said
    found = read(Report, OutputFolder(out).report)
    assert found.detection is not None
    assert found.detection.n_images == 2
    assert found.targets["onnx"].parts["body"].parity == own.targets["onnx"].parts["body"].parity


@NEEDS_RTX
def test_every_claimed_layer_of_every_engine_is_int8_and_engines_are_built_again(
    erq: Erq, out: Path, store: Path
) -> None:
    for part in ON_CANVASES:
        place = out / "tensorrt-rtx" / part / "engine"
        record = read(EngineRecord, place / ENGINE)
        assert record.problems == ()
        assert set(record.precision.values()) == {"int8"}
    code, said = erq("build", out, "--store", store, "--to", "tensorrt-rtx")
    assert code == 0, said
    assert "compiled to multiply 8-bit integers for tensorrt-rtx" in (out / "report.md").read_text()


@NEEDS_RTX
def test_engines_that_run_here_are_judged_like_the_graphs(
    erq: Erq, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no GPU: ONNX Runtime runs the engines' graphs in their place. They compute in float16, so codes round otherwise:
    0.5 points of box AP and 1.8 of mask AP were seen."""
    shutil.copytree(out, tmp_path / "out")

    def in_their_place(engines: Mapping[str, Artifact], canvases: tuple[Size, ...]) -> Executed:
        assert set(engines) == set(ON_CANVASES)
        graphs = tmp_path / "out" / "tensorrt-rtx"
        parts = {part: partial(in_onnxruntime, graphs / part / "model.onnx") for part in engines}
        return Executed(parts, canvases, torch.device("cpu"))

    monkeypatch.setattr(ran, "refusal", lambda engine: None)
    monkeypatch.setattr(finding, "in_engines", in_their_place)
    code, said = erq("validate", tmp_path / "out", "--store", tmp_path / "store")
    assert code == 0, said
    report = read(Report, tmp_path / "out" / "report.json")
    found, name = report.detection, "tensorrt-rtx engines"
    assert found is not None
    assert found.reference.box.ap > 30
    assert found.graphs[name].box.ap == pytest.approx(found.reference.box.ap, abs=5)
    assert found.graphs[name].mask.ap == pytest.approx(found.reference.mask.ap, abs=5)
    assert found.trembling[name] != found.trembling[IN_ONNX_RUNTIME]  # its own rounding is 500 times as large
    assert f"the engine of tensorrt-rtx/body-{UPRIGHT} was not run: {ran.NO_PICTURE}." in report.not_verified
    assert f"onnx/detector-{UPRIGHT} was not run: {ran.NO_PICTURE}." in report.not_verified
    assert name in (tmp_path / "out" / "report.md").read_text()


@NEEDS_RTX
def test_claimed_layers_that_are_compiled_to_floating_point_end_the_run(
    erq: Erq, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"body": "body.rpn.conv.0.0", f"body-{UPRIGHT}": "body.rpn.conv.0.0", "box": "box.0.head.fc7"}
    shutil.copytree(out, tmp_path / "out")
    monkeypatch.setattr(make, "save", unquantized(wrong.values()))
    code, said = erq("build", tmp_path / "out", "--store", tmp_path / "store", "--to", "tensorrt-rtx")
    assert code == 6, said
    for part, layer in wrong.items():
        assert said.count(f"{layer} is claimed integer and runs in float16") == list(wrong.values()).count(layer)
        record = read(EngineRecord, tmp_path / "out" / "tensorrt-rtx" / part / "engine" / ENGINE)
        assert [path for path, precision in record.precision.items() if precision != "int8"] == [layer]


def test_upright_pictures_lie_on_a_canvas_of_their_own(erq: Erq, out: Path, store: Path, tmp_path: Path) -> None:
    """The same integers, calibrated on the first canvas, find on the other what the reference finds there."""
    Scenes(4, seed=5).write(tmp_path / "coco", "val2017")
    turned(tmp_path / "coco", "val2017", {1, 2})
    shutil.copytree(out, tmp_path / "out")
    code, said = erq("validate", tmp_path / "out", "--store", store, "--coco", tmp_path / "coco")
    assert code == 0, said
    found = read(Report, tmp_path / "out" / "report.json").detection
    assert found is not None
    assert (found.n_images, found.n_given, found.n_on) == (4, 4, (2, 2))
    graphs = found.graphs[IN_ONNX_RUNTIME]
    assert abs(graphs.box.ap - found.reference.box.ap) < 15
    assert "on a canvas of 192 × 256 or 256 × 192" in (tmp_path / "out" / "report.md").read_text()


def test_a_run_made_again_is_identical_but_for_what_the_builder_makes(erq: Erq, out: Path) -> None:
    """TensorRT-RTX gives other bytes for the heads' engines each time (1.7.1), and `reproduce` says so with exit code 8."""
    code, said = erq("reproduce", out / "manifest.json")
    made = [f"{target}/{part}" for target in TARGETS for part in ON_CANVASES]
    for name in ("bundle", "images", "onnx/detector", f"onnx/detector-{UPRIGHT}", *made):
        assert f"{name}: identical" in said, said
    assert code in ((0, 8) if RTX else (0,)), said
