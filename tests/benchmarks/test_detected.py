"""The tables of detectors, carried through: the stand-in on a few scenes, COCO's on a folder of its layout and a toy's file."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from published_detector import random_state, toy

from erq_export.contract.errors import SpecError
from erq_export.data.scenes import NAMES, Scenes
from erq_export.flow.detection import work
from erq_export.models.detectors import architecture, loading

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAME = "mask_rcnn_swin_t"
FILE = architecture.PUBLISHED[NAME].file

pytest.importorskip("faster_coco_eval")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(request.param)


def started(script: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> tuple[dict[str, Any], str]:
    name = Path(str(script.__file__)).stem
    given = [f"{name}.py", "--out", str(out), "--store", str(out / "store"), *words]
    monkeypatch.setattr(sys, "argv", given)
    script.main()
    return json.loads((out / f"{name}.json").read_text()), (out / f"{name}.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["shapes"], indirect=True)
def test_methods_stand_beside_float_and_each_other(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = (
        "--models",
        "shapes",
        "--settings",
        "w8a8 rtn 1",
        "w4a4 rtn 1",
        "w4a4 erq 1",
        "--seeds",
        "2",
        "--pictures",
        "4",
    )
    found, page = started(script, monkeypatch, tmp_path, *few)
    (row,) = found["rows"]
    assert row["pictures"] == 4
    assert [s["setting"] for s in row["settings"]] == ["w8a8 rtn 1", "w4a4 rtn 1", "w4a4 erq 1"]
    for setting in row["settings"]:
        box = setting["box"]
        assert len(box["all"]) == 2
        assert box["low"] <= box["high"]
        assert box["share"] == pytest.approx(100 * box["mean"] / row["float"]["box"])
    assert [(b["setting"], b["kind"]) for b in row["beaten"]] == [("w4a4 rtn 1", "box"), ("w4a4 rtn 1", "mask")]
    assert "| float32 |" in page
    assert page.count("| w4a4 rtn 1 |") == 3


@pytest.mark.slow
@pytest.mark.parametrize("script", ["coco"], indirect=True)
def test_a_published_file_is_measured_on_a_folder_in_cocos_layout(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = replace(toy(cascade=False), classes=len(NAMES))
    monkeypatch.setitem(architecture.PUBLISHED, NAME, architecture.Published(file=FILE, architecture=small))
    monkeypatch.setattr(work, "COCO_NAMES", NAMES)  # the scenes' kinds in the place of COCO's
    for side, pixels in (("SHORT", 192), ("LONG", 256)):
        monkeypatch.setattr(loading, side, pixels)
    Scenes(2, seed=1).write(tmp_path / "coco", "val2017")
    Scenes(2, seed=2).write(tmp_path / "coco", "train2017")
    (tmp_path / "files").mkdir()
    given = ("--coco", str(tmp_path / "coco"), "--checkpoints", str(tmp_path / "files"), "--models", NAME)
    given += ("--settings", "w8a8 rtn", "w8a8 erq", "--canvas", "192x256")
    with pytest.raises(Exception, match=FILE):
        started(script, monkeypatch, tmp_path / "out", *given)
    torch.save({"state_dict": random_state(small, seed=1)}, tmp_path / "files" / FILE)
    found, page = started(script, monkeypatch, tmp_path / "out", *given)
    assert [s["setting"] for s in found["rows"][0]["settings"]] == ["w8a8 rtn", "w8a8 erq"]
    assert "| ERQ, ICML | 36.8 / 36.6 |" in page


@pytest.mark.parametrize("script", ["detected"], indirect=True)
def test_an_interval_is_that_of_the_mean_over_seeds(script: ModuleType) -> None:
    """One seed is as far above on every drawing as the other is below: nothing is left of either."""
    drawn = np.random.default_rng(0).normal(60, 1, 300)

    def kinds(points: float) -> dict[str, Any]:
        return {kind: script.Score(ap=60 + points, samples=drawn + points) for kind in script.KINDS}

    row = script.summed("w4a4 erq", [kinds(2), kinds(-2)], kinds(0))["box"]
    assert [row["mean"], row["low"], row["high"]] == pytest.approx([60, 0, 0])
    kept = {("w4a4 erq", 0): kinds(1), ("w4a4 erq", 1): kinds(2), ("w4a4 rtn", 0): kinds(-1), ("w4a4 rtn", 1): kinds(2)}
    box, _ = script.beaten(["w4a4 rtn", "w4a4 erq"], 2, kept)
    assert [box[name] for name in ("mean", "low", "high", "better")] == pytest.approx([1, 1, 1, 1])


@pytest.mark.parametrize("script", ["detected"], indirect=True)
def test_a_setting_is_bits_and_method(script: ModuleType) -> None:
    assert script.fields("w4a4 erq") == {"bits": "w4a4", "method": "erq"}
    assert script.fields("w4a4 erq 2")["calib"] == 2
    for text in ("w4a4", "w4a4 erq one", "w4a4 erq 1 2"):
        with pytest.raises(SpecError, match="--settings"):
            script.fields(text)
