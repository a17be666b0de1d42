"""Average precision is pycocotools' to the last digit, and what is counted is what was found."""

import contextlib
import copy
import io
import sys
from typing import Any

import pytest
import torch
from ellipses import CATEGORIES, HEIGHT, WIDTH, scenes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from erq_export.contract.errors import DataError, MachineError
from erq_export.models.detectors.detector import Detections
from erq_export.models.detectors.pasting import pasted
from erq_export.validate.metrics.average_precision import Found, average_precision, in_cocos_form

FIGURES = ("ap", "ap50", "ap75", "small", "medium", "large")


def pycocotools(truth: dict[str, Any], found: list[Found], kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = copy.deepcopy(truth) | {"info": {}}
        reference.createIndex()
        drop = "bbox" if kind == "segm" else "segmentation"
        results = reference.loadRes([{k: v for k, v in copy.deepcopy(f).items() if k != drop} for f in found])
        counted = COCOeval(reference, results, kind)
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return [float(v) for v in counted.stats[:6]]


@pytest.mark.parametrize("moved", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(("kind", "theirs"), [("box", "bbox"), ("mask", "segm")])
def test_it_is_what_pycocotools_counts(moved: float, kind: Any, theirs: str) -> None:
    truth, found = scenes(moved=moved)
    before = copy.deepcopy((truth, found))
    ours = average_precision(truth, found, kind)
    wanted = pycocotools(truth, found, theirs)
    for name, value in zip(FIGURES, wanted, strict=True):
        assert getattr(ours, name) == pytest.approx(100 * value, abs=1e-4)  # 1e-6 of a share
    assert (truth, found) == before
    assert 1 < ours.ap < 99


def test_closer_detections_are_better() -> None:
    aps = [average_precision(*scenes(moved=moved), "box").ap for moved in (0.3, 0.1, 0.02)]
    assert aps == sorted(aps)
    assert aps[0] < aps[2] - 10


def test_the_truth_itself_is_found() -> None:
    truth, _ = scenes(moved=0)
    found = [
        {k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1.0}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    assert average_precision(truth, found, "box").ap == pytest.approx(100)


def test_nothing_found_is_zero_and_nothing_to_find_is_nothing() -> None:
    truth, _ = scenes(moved=0)
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] > 96**2 or a["area"] < 32**2]
    ours = average_precision(truth, [], "mask")
    assert (ours.ap, ours.ap50, ours.small, ours.medium) == (0, 0, 0, None)


def test_nothing_to_find_at_all_has_no_precision() -> None:
    truth, found = scenes(moved=0)
    with pytest.raises(DataError, match="nothing to find"):
        average_precision(truth | {"annotations": []}, found, "box")


def test_detections_are_told_in_cocos_form() -> None:
    """Label 2 is the second category; boxes as corner and sides; a mask's runs count its pixels, column by column."""
    masks = torch.zeros(1, 28, 28)
    masks[:, :, :14] = 1
    boxes = torch.tensor([[10.0, 20, 38, 48]])
    detections = Detections(boxes=boxes, labels=torch.tensor([2]), scores=torch.tensor([0.5]), masks=masks)
    (found,) = in_cocos_form(detections, image_id=9, size=(HEIGHT, WIDTH), category_ids=CATEGORIES)
    assert (found["image_id"], found["category_id"], found["bbox"], found["score"]) == (9, 17, [10, 20, 28, 28], 0.5)
    from pycocotools import mask as runs_of

    (pixels,) = pasted(masks, boxes, (HEIGHT, WIDTH))
    assert (runs_of.decode(found["segmentation"]).astype(bool) == pixels.numpy()).all()
    assert pixels.nonzero().min(0).values.tolist() == [20, 10]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("faster_coco_eval")] + ["faster_coco_eval.core.coco"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MachineError, match="faster-coco-eval") as caught:
        average_precision({}, [], "box")
    assert caught.value.fix == "pip install 'erq-export[detect]'"
    assert caught.value.exit_code == 3
