"""The script for a GPU machine: all that needs no GPU runs here, a step that fails stops no other, and both are written."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from erq_export.contract.errors import MachineError

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu")


def started(script: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> tuple[dict, str]:
    given = ["gpu.py", "--dry-run", "--models", "demo", "--out", str(out), "--store", str(out / "store"), *words]
    monkeypatch.setattr(sys, "argv", given)
    script.main()
    return json.loads((out / "gpu-dry-run.json").read_text()), (out / "gpu-dry-run.md").read_text()


@pytest.mark.slow
def test_all_that_needs_no_gpu_runs(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
    found, page = started(script, monkeypatch, tmp_path)
    (calibration,), (speed,), (accuracy,) = found["calibration"], found["speed"], found["accuracy"]
    assert calibration["gpu"] == script.NO_GPU
    assert calibration["cpu_s"] > 0
    assert {line["runner"] for line in speed["bench"]["lines"]} >= {"onnxruntime"}
    assert accuracy["top1"]["float32 in onnxruntime"] > 95
    assert accuracy["top1"]["onnx in onnxruntime"] > 95
    assert "onnx in onnxruntime-cuda" in accuracy["skipped"]
    for text in ("# dry-run", "## Calibration", "| float32 in onnxruntime | 1 | resident |", script.NO_GPU):
        assert text in page
    (detection,) = found["detection"]
    assert set(detection["precision"]) == {"float", "reference", "onnx in ONNX Runtime"}
    assert f"| float | {detection['precision']['float']['box']:.2f} |" in page
    assert "Not done" not in page


def test_a_step_that_fails_stops_no_other(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lacks(*_: object) -> dict:
        raise MachineError("no engine for this GPU", fix="another GPU")

    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(script, "calibration", lacks)
    monkeypatch.setattr(script, "speed", lambda *_: 1 / 0)
    monkeypatch.setattr(script, "detection", lacks)
    monkeypatch.setattr(script, "accuracy", lambda *_: {"top1": {"x": 50.0, "y": "refused"}, "skipped": {}})
    found, page = started(script, monkeypatch, tmp_path)
    assert found["calibration"][0]["failed"] == "no engine for this GPU (fix: another GPU)"
    assert "ZeroDivisionError" in found["speed"][0]["traceback"]
    assert found["detection"][0]["failed"] == found["calibration"][0]["failed"]
    assert found["accuracy"][0]["top1"] == {"x": 50.0, "y": "refused"}
    assert page.count("ot done: ") == 3
    assert "| x | 50.00 |" in page


@pytest.mark.parametrize(("capability", "served"), [((9, 0), False), ((8, 9), True)])
def test_a_gpu_that_tensorrt_rtx_does_not_serve_is_said_to_be_one(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], served: bool
) -> None:
    cuda = script.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(cuda, "get_device_name", lambda: "NVIDIA X1")
    monkeypatch.setattr(script, "gpu_states", tuple)
    found = script.gpu(dry_run=False)
    assert (found["served"] == "yes") == served
    assert found["name"] == "NVIDIA X1"


def test_without_a_gpu_and_without_dry_run_it_does_not_begin(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--dry-run"):
        script.gpu(dry_run=False)
