"""How well boxes and masks are found, by COCO's average precision; counted by faster-coco-eval, as pycocotools counts.

AP: the mean over IoU thresholds 0.50, 0.55 … 0.95 and over categories of the area under precision against recall, at most 100
detections an image. AP₅₀, AP₇₅ at one threshold; small, medium, large for things of less than 32², less than 96², more pixels.
"""

import copy
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from erq_export.contract.errors import DataError, no_coco_eval
from erq_export.models.detectors.detector import Detections
from erq_export.models.detectors.pasting import pasted

Found = dict[str, Any]  # one detection in COCO's form of results
KINDS: dict[Literal["box", "mask"], str] = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """In per cent; None where there is nothing of that size."""

    ap: float
    ap50: float
    ap75: float
    small: float | None
    medium: float | None
    large: float | None


def in_cocos_form(
    detections: Detections, *, image_id: int, size: tuple[int, int], category_ids: Sequence[int]
) -> list[Found]:
    """The detections of one image of this height and width. Class i of the detector is the i-th category, sorted by id."""
    encode = library("mask").encode
    found = []
    masks = pasted(detections.masks, detections.boxes, size)
    rows = zip(detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), masks, strict=True)
    for (x1, y1, x2, y2), label, score, mask in rows:
        runs = encode(_by_columns(mask))
        found.append(
            {
                "image_id": image_id,
                "category_id": category_ids[label - 1],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                "segmentation": {"size": list(size), "counts": _text(runs["counts"])},
            }
        )
    return found


def average_precision(
    truth: Mapping[str, Any], found: Sequence[Found], kind: Literal["box", "mask"]
) -> AveragePrecision:
    """Of what was found on the images of `truth` (`CocoSplit.truth`). Neither is changed; nothing found is an AP of 0.

    MachineError where faster-coco-eval is not installed; DataError where there is nothing to find.
    """
    left_out = "bbox" if kind == "mask" else "segmentation"  # a mask's size is its pixels', not its box'
    things = [{k: copy.deepcopy(v) for k, v in one.items() if k != left_out} for one in found]
    reference = library("coco").COCO(copy.deepcopy(dict(truth)))
    counted = library("faster_eval_api").COCOeval_faster(
        reference, reference.loadRes(things), KINDS[kind], print_function=_silent
    )
    counted.evaluate()
    counted.accumulate()
    counted.summarize()
    ap, ap50, ap75, *by_size = (100 * float(value) for value in counted.stats[:6])
    if ap < 0:
        raise DataError("there is nothing to find on these images", fix="images with annotated things on them")
    small, medium, large = (None if value < 0 else value for value in by_size)  # COCO's code says −1
    return AveragePrecision(ap=ap, ap50=ap50, ap75=ap75, small=small, medium=medium, large=large)


def of_kind(one: Mapping[str, Any], kind: Literal["box", "mask"], size: tuple[int, int]) -> Any:
    """What overlaps are measured of: a box (x, y, width, height), or compressed runs of a mask of this height and width."""
    if kind == "box":
        return list(one["bbox"])
    found, encode = one["segmentation"], library("mask")
    if isinstance(found, list):  # polygons
        return encode.merge(encode.frPyObjects(found, *size))
    if isinstance(found["counts"], list):
        return encode.frPyObjects(dict(found), *size)
    counts = found["counts"]
    return {"size": list(found["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _by_columns(mask: Tensor) -> Any:
    """(H, W) uint8, in the order in which runs are counted."""
    return mask.T.contiguous().cpu().byte().numpy().T


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def _silent(*_: Any) -> None:
    """What the library would print."""


def library(module: str) -> Any:
    """A module of faster-coco-eval. MachineError where it is not installed."""
    try:
        return importlib.import_module(f"faster_coco_eval.core.{module}")
    except ImportError as e:
        raise no_coco_eval() from e
