"""How many detections two detectors share: class, box, mask and score decide, places of equals do not."""

from typing import Any

import numpy as np
import pytest

from erq_export.data.runs import runs
from erq_export.validate.metrics.likeness import likeness

pytest.importorskip("faster_coco_eval")
H, W = 40, 60


def one(x: int, *, image: int = 1, category: int = 1, score: float = 0.9, side: int = 20) -> dict[str, Any]:
    """A square detection."""
    mask = np.zeros((H, W), bool)
    mask[5 : 5 + side, x : x + side] = True
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [x, 5, side, side],
        "score": score,
        "segmentation": {"size": [H, W], "counts": runs(mask)},
    }


def test_the_same_in_another_order_is_all_of_it() -> None:
    a = [one(0), one(30, category=2), one(30, image=2)]
    found = likeness([1, 2, 3], a, a[::-1])
    assert (found.n, found.found, found.n_pictures, found.alike) == (3, 3, 3, 3)


@pytest.mark.parametrize(
    "other", [one(0, category=2), one(0, score=0.8), one(3), one(0, side=10)], ids=["class", "score", "box", "size"]
)
def test_what_differs_is_another_one(other: dict[str, Any]) -> None:
    found = likeness([1, 2], [one(0), one(0, image=2)], [other, one(0, image=2)])
    assert (found.n, found.found, found.alike) == (2, 1, 1)


def test_one_more_makes_a_picture_another_one() -> None:
    found = likeness([1], [one(0)], [one(0), one(30)])
    assert (found.found, found.alike) == (1, 0)


def test_each_is_taken_once() -> None:
    assert likeness([1], [one(0), one(0)], [one(0)]).found == 1


def test_what_has_no_area_is_left_out() -> None:
    empty = one(0) | {"bbox": [0, 5, 0, 20]}
    found = likeness([1], [one(0), empty], [one(0)])
    assert (found.n, found.found, found.alike) == (1, 1, 1)
