"""Detectors on the command line: what is for classifiers, what files are missing, which canvas cannot be, before any work."""

import json
from pathlib import Path

import pytest
import torch
from coco_folder import instances
from command_line import Erq, write_images

from erq_export.contract.errors import DataError, SpecError
from erq_export.data.scenes import Scenes
from erq_export.flow import api
from erq_export.flow.detection import asked
from erq_export.flow.detection import run as detection
from erq_export.flow.job import resolve
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT
from erq_export.models.detectors import detector

SHAPES = ("shapes", "--bits", "w4a4")
MASK = ("mask_rcnn_swin_t", "--bits", "w4a4")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("vit_s", "--bits", "w4a4", "--coco", "c"), "--coco is for detectors, vit_s is a classifier"),
        (("vit_s", "--bits", "w4a4", "--canvas", "800x1344"), "--model-arg img_size=N"),
        ((*SHAPES, "--val", "v"), "--val is for classifiers, shapes is a detector"),
        ((*SHAPES, "--class-map", "m"), "--class-map is for classifiers"),
        ((*SHAPES, "--budget", "4"), "--budget is for classifiers"),
        ((*SHAPES, "--model-arg", "depth=2"), "--canvas 800x1344"),
        ((*SHAPES, "-O", "inputs=quantized"), "the boxes of a quantized detector are others"),
        ((*SHAPES, "-O", "rounding=mipq"), "-O rounding=mipq is for classifiers"),
        ((*SHAPES, "-O", "head_ridge=5"), "-O head_ridge is for classifiers"),
        ((*SHAPES, "--max-batch", "64"), "--max-batch is for classifiers"),
        ((*SHAPES, "--to", "reference"), "--to reference is for classifiers"),
        ((*SHAPES, "--attention", "int8"), "attention on windows stays in float"),
        ((*SHAPES, "--compare", "w3a4"), "benchmarks/shapes.py"),
        ((*SHAPES, "--seeds", "3"), "benchmarks/shapes.py"),
        ((*SHAPES, "--sensitivity"), "--sensitivity is for classifiers"),
        ((*SHAPES, "--min-agreement", "90"), "--max-drop, in points of average precision"),
        ((*SHAPES, "--calib", "0"), "--calib"),
        ((*SHAPES, "--calib", "65"), "65 images were asked for"),
        ((*SHAPES, "--canvas", "800"), "such as 800x1344"),
        ((*SHAPES, "--val-images", "10001"), "at most 10000"),
        ((*SHAPES, "--canvas", "192x256,"), "or several: 800x1344,1344x800"),
        ((*SHAPES, "--canvas", "192x256,190x256"), "both sides must be multiples of 32"),
        ((*SHAPES, "--canvas", "190x256"), "both sides must be multiples of 32"),
        ((*SHAPES, "--canvas", "32x32"), "fits on the canvas of 32×32"),
        ((*MASK, "--data", "{images}"), "mask_rcnn_swin_tiny_patch4_window7.pth"),
        (MASK, "no pictures to calibrate from were named"),
        ((*MASK, "--coco", "{empty}"), "has no train2017"),
        ((*MASK, "--data", "{images}", "--max-drop", "1"), "--max-drop without --coco"),
        ((*SHAPES, "--coco", "{absent}", "--data", "{images}", "--calib", "2"), "there is no folder"),
        ((*SHAPES, "--coco", "{foreign}", "--data", "{images}", "--calib", "2"), "the detector tells 8 classes apart"),
        ((*SHAPES, "--coco", "{damaged}", "--data", "{images}", "--calib", "2"), "cannot read the annotations"),
        (("mask_rcnn_swin_x", "--bits", "w4a4", "--calib", "2", "--data", "{images}"), "mask_rcnn_swin_t"),
    ],
)
def test_bad_words_are_refused_and_nothing_is_written(
    erq: Erq, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    places = folders(tmp_path)
    asked = [word.format(**places) if "{" in word else word for word in words]
    found, said = erq(*asked, "--no-store", "--out", tmp_path / "out")
    assert (found, said.count("fix: ")) == (2, 1), said
    assert says in said
    assert not (tmp_path / "out").exists()


def folders(root: Path) -> dict[str, str]:
    """Pictures without annotations; annotations of other categories, and of none."""
    write_images(root / "images", 2)
    (root / "empty").mkdir()
    foreign, damaged = root / "foreign", root / "damaged"
    for folder in (foreign, damaged):
        Scenes(1, seed=1).write(folder, "val2017")
    annotations = json.loads((foreign / "annotations" / "instances_val2017.json").read_text())
    annotations["categories"].append(instances()["categories"][0] | {"id": 99})
    (foreign / "annotations" / "instances_val2017.json").write_text(json.dumps(annotations))
    (damaged / "annotations" / "instances_val2017.json").write_text("{}")
    names = ("images", "empty", "absent", "foreign", "damaged")
    return {name: str(root / name) for name in names}


def test_torchrun_is_refused(erq: Erq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = erq(*SHAPES, "--out", tmp_path / "out")
    assert code == 2
    assert "torchrun shares images of classifiers" in said


def test_the_api_refuses_pictures_that_it_would_not_take(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="takes pictures from folders"):
        api.run("shapes", bits="w4a4", data=torch.zeros(1, 3, 192, 256), out=tmp_path / "out")
    with pytest.raises(SpecError, match="calibrate is for classifiers"):
        api.calibrate("shapes", bits="w4a4")
    with pytest.raises(SpecError, match="--max-drop without --coco"):
        api.run(
            "mask_rcnn_swin_t",
            bits="w4a4",
            data=write_images(tmp_path / "photos", 1),
            max_drop=1.0,
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_without_what_counts_it_does_not_begin(erq: Erq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked.importlib.util, "find_spec", lambda _: None)
    code, said = erq(*SHAPES, "--out", tmp_path / "out")
    assert code == 3
    assert "pip install 'erq-export[detect]'" in said


def test_a_detector_that_finds_nothing_is_refused_before_it_is_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "LEAST_SCORE", 2.0)
    job = resolve({"name": "shapes", "bits": "w4a4", "pretrained": False, "calib": 1})
    with Store.none() as nothing, pytest.raises(DataError, match="finds nothing on the calibration pictures"):
        detection.run(job, tmp_path / "out", SILENT, store=nothing)
    assert not (tmp_path / "out").exists()


def test_every_canvas_must_fit_into_memory(erq: Erq, tmp_path: Path) -> None:
    code, said = erq(*SHAPES, "--canvas", "192x256,99968x99968", "--out", tmp_path / "out")
    assert (code, "the masks of a canvas of 99968×99968" in said) == (3, True), said
    assert not (tmp_path / "out").exists()


def test_published_detectors_have_a_canvas_for_upright_pictures() -> None:
    for name in ("mask_rcnn_swin_t", "cascade_mask_rcnn_swin_s"):
        assert resolve({"name": name, "bits": "w4a4"}).model.canvases == ((800, 1344), (1344, 800))
    assert resolve({"name": "shapes", "bits": "w4a4"}).model.canvases == ((192, 256),)
