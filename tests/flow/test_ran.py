"""What of a detector's run is executed on this machine; of the rest the report says why not, and nothing else is lost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erq_export.contract.errors import EngineError, MachineError
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection import ran as running
from erq_export.flow.detection.ran import NO_PICTURE, NOTHING_TO_FIND, Ran, ran
from erq_export.flow.measure import Made
from erq_export.validate.parity.floor import FLOAT_E, HALF_E

LYING, UPRIGHT = (192, 256), (256, 192)
PARTS = ("body", "box", "mask", "body-256x192")
NOT_RUN = "tensorrt-rtx's engines were compiled, not run: "


def made(folder: Path, *, without: str = "") -> Made:
    """Graphs and engines of a detector on two canvases; no file is read."""
    units = [f"{target}/{part}" for target in ("onnx", "tensorrt-rtx") for part in PARTS]
    whole = ["onnx/detector", "onnx/detector-256x192"]
    one: Any = SimpleNamespace(read=lambda reader: reader(folder))
    bundle: Artifact = one
    engines = {unit: one for unit in units if unit.startswith("tensorrt-rtx") and unit != without}
    return Made(bundle=bundle, graphs=dict.fromkeys([*units, *whole], one), engines=engines)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two lying pictures, on which graphs and engines find something; this machine has the engines' GPU."""
    monkeypatch.setattr(running.finding, "of_graphs", lambda _work, graphs: ["in ONNX Runtime", *graphs])
    monkeypatch.setattr(running.finding, "of_engines", lambda _work, target, engines: [target, *engines])
    monkeypatch.setattr(running, "refusal", lambda engine: None)
    truth = SimpleNamespace(size=lambda i: LYING)
    framing = SimpleNamespace(canvas_for=lambda size: size)
    return SimpleNamespace(measured_on=truth, framing=framing, pictures=(0, 1), canvases=(LYING, UPRIGHT))


def test_graphs_and_engines_run_and_what_no_picture_reached_is_told(work: Any, tmp_path: Path) -> None:
    found = ran(work, made(tmp_path))
    graphs, engines = found.ways["onnx in ONNX Runtime"], found.ways["tensorrt-rtx engines"]
    assert (graphs.found, graphs.e) == (["in ONNX Runtime", LYING, UPRIGHT], FLOAT_E)
    assert (engines.found, engines.e) == (["tensorrt-rtx", *PARTS], HALF_E)
    assert found.not_run == [
        f"onnx/detector-256x192 was not run: {NO_PICTURE}.",
        f"the engine of tensorrt-rtx/body-256x192 was not run: {NO_PICTURE}.",
    ]


def test_where_nothing_is_found_masks_were_not_run(work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.finding, "of_engines", lambda *_: [])
    assert ran(work, made(tmp_path)).not_run[-1] == "tensorrt-rtx's engines of masks were not run: nothing was found."


def told(found: Ran) -> str:
    """Why the engines did not run; the graphs did."""
    assert list(found.ways) == ["onnx in ONNX Runtime"]
    (why,) = [line for line in found.not_run if line.startswith(NOT_RUN)]
    return why.removeprefix(NOT_RUN)


def test_a_refusal_is_told(work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "refusal", lambda engine: "here is another version")
    assert told(ran(work, made(tmp_path))) == "here is another version."


@pytest.mark.parametrize("error", [EngineError, MachineError])
def test_an_engine_that_fails_costs_nothing_else(
    work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[EngineError]
) -> None:
    def fails(*_: object) -> list[Any]:
        raise error("cannot make a context", fix="a larger GPU")

    monkeypatch.setattr(running.finding, "of_engines", fails)
    assert told(ran(work, made(tmp_path))) == "cannot make a context."


def test_a_missing_part_is_named(work: Any, tmp_path: Path) -> None:
    found = ran(work, made(tmp_path, without="tensorrt-rtx/mask"))
    assert told(found) == "there is none of mask."


def test_without_annotated_pictures_nothing_runs(work: Any, tmp_path: Path) -> None:
    work.measured_on = None
    found = ran(work, made(tmp_path))
    assert found.ways == {}
    assert found.not_run == [
        f"onnx/detector was not run: {NOTHING_TO_FIND}.",
        f"onnx/detector-256x192 was not run: {NOTHING_TO_FIND}.",
        f"{NOT_RUN}{NOTHING_TO_FIND}.",
    ]
