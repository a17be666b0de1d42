"""The bootstrap's average precision is COCO's, for all pictures and for any draw of them, and its interval tells the truth."""

import copy
from typing import Any, Literal

import numpy as np
import pytest
from ellipses import scenes

from erq_export.contract.errors import DataError
from erq_export.validate.metrics.average_precision import Found, average_precision
from erq_export.validate.metrics.resampled import gain, matched

KINDS = pytest.mark.parametrize("kind", ["box", "mask"])
Kind = Literal["box", "mask"]


def drawn(truth: dict[str, Any], found: list[Found], w: list[int]) -> tuple[dict[str, Any], list[Found]]:
    """The pictures again, each as often as it was drawn, under new ids."""
    made: dict[str, Any] = {"images": [], "annotations": [], "categories": truth["categories"]}
    things: list[Found] = []
    for picture, times in zip(truth["images"], w, strict=True):
        for _ in range(times):
            new = len(made["images"]) + 1
            made["images"].append(picture | {"id": new})
            for a in truth["annotations"]:
                if a["image_id"] == picture["id"]:
                    made["annotations"].append(copy.deepcopy(a) | {"image_id": new, "id": len(made["annotations"]) + 1})
            things += [copy.deepcopy(one) | {"image_id": new} for one in found if one["image_id"] == picture["id"]]
    return made, things


@KINDS
@pytest.mark.parametrize("moved", [0.02, 0.1, 0.3])
def test_every_picture_once_is_cocos_figure(kind: Kind, moved: float) -> None:
    """With crowds among the things, wrong detections, and masks as runs."""
    truth, found = scenes(moved=moved)
    assert matched(truth, found, kind).ap() == pytest.approx(average_precision(truth, found, kind).ap, abs=1e-9)


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_a_draw_is_cocos_figure_of_the_drawn_pictures(kind: Kind, seed: int) -> None:
    truth, found = scenes(moved=0.05)
    n = len(truth["images"])
    w = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n))
    wanted = average_precision(*drawn(truth, found, w.tolist()), kind).ap
    assert matched(truth, found, kind).ap(w) == pytest.approx(wanted, abs=1e-9)


@KINDS
def test_cocos_rules_hold_where_they_are_seldom_needed(kind: Kind) -> None:
    """Equal scores within a picture and between pictures that are not in the order of their ids, a thing that lies twice in the
    same place, more than a hundred detections of a class on a picture, and things told as polygons."""
    truth, found = scenes(moved=0.05)
    truth["images"] = truth["images"][::-1]
    first = truth["annotations"][0]
    truth["annotations"].append(copy.deepcopy(first) | {"id": 10_000, "iscrowd": 0})
    for a in truth["annotations"][1::3]:
        x, y, w, h = a["bbox"]
        a |= {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h, "iscrowd": 0}
    found = [one | {"score": round(one["score"], 1)} for one in found]
    own = next(one for one in found if one["image_id"] == first["image_id"])
    found += [copy.deepcopy(own) | {"score": 0.01 * (k % 7)} for k in range(150)]
    assert matched(truth, found, kind).ap() == pytest.approx(average_precision(truth, found, kind).ap, abs=1e-9)


def test_detectors_are_compared_on_the_same_pictures_and_on_some() -> None:
    truth, found = scenes(moved=0.1)
    fewer = truth | {"images": truth["images"][1:]}
    with pytest.raises(ValueError, match="same pictures"):
        gain(matched(truth, found, "box"), matched(fewer, found, "box"))
    with pytest.raises(DataError, match="nothing to find"):
        matched(truth | {"images": []}, found, "box")


def test_nothing_found_is_nothing() -> None:
    truth, _ = scenes(moved=0.1)
    assert matched(truth, [], "box").ap() == 0.0


def test_a_better_detector_is_told_from_a_worse_one_and_not_from_itself() -> None:
    truth, near = scenes(moved=0.02)
    _, far = scenes(moved=0.3)
    good, bad = matched(truth, near, "box"), matched(truth, far, "box")
    low, high = gain(good, bad, draws=200)
    assert 0 < low < good.ap() - bad.ap() < high
    assert gain(good, good, draws=50) == (0.0, 0.0)
