"""The script that calibrates full-size detectors and compiles their parts, on the stand-in's size."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from erq_export.backends.tensorrt import available
from erq_export.contract.errors import SpecError

FOLDER = Path(__file__).parents[2] / "benchmarks"
PARTS = ("body", "box", "mask")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("detectors")


@pytest.mark.slow
def test_a_detector_is_calibrated_and_every_part_is_compiled(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = ["detectors.py", "--models", "shapes", "--canvas", "192x256", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    script.main()
    (row,) = json.loads((tmp_path / "detectors.json").read_text())["rows"]
    assert row["parts"].keys() == {"swin", "pyramid", "proposals", "box", "mask"}
    assert sum(row["parts"].values()) == pytest.approx(row["wall_s"], rel=0.1)
    assert "| shapes |" in (tmp_path / "detectors.md").read_text()
    if available("tensorrt_rtx") is not None:
        assert {name: part["problems"] for name, part in row["engines"].items()} == {name: [] for name in PARTS}


@pytest.mark.parametrize("text", ["800", "800x", "x800", "800x1344x3", "a x b"])
def test_a_canvas_is_two_sides(script: ModuleType, text: str) -> None:
    assert script.canvas_of("800x1344") == (800, 1344)
    with pytest.raises(SpecError, match="--canvas"):
        script.canvas_of(text)
