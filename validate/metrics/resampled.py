"""How sure a difference of two detectors' average precisions is: a paired bootstrap over pictures.

Average precision is no mean over pictures: it ranks the detections of all. So every draw ranks those of its pictures, each as
often as it was drawn, and both detectors have the same draws. COCO's own code would match anew for every draw; here matches are
made once, by its rules, and a draw only counts. With every picture once it is COCO's figure (`average_precision`, to 1e-9).

Letters:  t IoU thresholds;  D detections of a category, best first;  w (n,) how often each picture is drawn
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from erq_export.contract.errors import DataError

from .average_precision import Found, library, of_kind

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of a category on a picture
DRAWS, SEED = 1000, 0
EDGE = 1e-10  # an IoU of 1 is reached by rounding alone
Bits = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Category:
    """picture (D,) of each detection;  right, aside (t, D): it found a thing, it is not counted;  things (n,) to find on each."""

    picture: NDArray[np.int64]
    right: Bits
    aside: Bits
    things: NDArray[np.int64]

    def precision(self, w: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """(t, 101) at COCO's recalls; None where there is nothing to find."""
        total = int(self.things @ w)
        if not total:
            return None
        counted = np.where(self.aside, 0, w[self.picture])  # (t, D)
        right, all_ = (counted * self.right).cumsum(1), counted.cumsum(1)
        found = np.zeros((len(THRESHOLDS), len(RECALLS)))
        if self.picture.size:
            precision = right / (all_ + np.spacing(1))
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or a larger one
            for i, recall in enumerate(right / total):
                at = recall.searchsorted(RECALLS, side="left")
                reached = at < len(recall)
                found[i, reached] = best[i, at[reached]]
        return found


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Everything of a detector on some pictures that average precision depends on."""

    categories: tuple[Category, ...]
    pictures: tuple[int, ...]  # ids, in COCO's order: that of equal scores

    def ap(self, w: NDArray[np.int64] | None = None) -> float:
        """In per cent, each picture counting w times; 0 where nothing is to be found."""
        each = np.ones(len(self.pictures), np.int64) if w is None else w
        found = [p for category in self.categories if (p := category.precision(each)) is not None]
        return 100 * float(np.mean(found)) if found else 0.0


def samples(one: Matched, draws: int = DRAWS) -> NDArray[np.float64]:
    """(draws,) average precision on as many drawings of its pictures, the same for every detector of these pictures."""
    chance, n = np.random.default_rng(SEED), len(one.pictures)
    return np.array([one.ap(w) for w in chance.multinomial(n, np.full(n, 1 / n), draws)])


def gain(better: Matched, other: Matched, *, draws: int = DRAWS) -> tuple[float, float]:
    """The 95 % percentile interval of how many points the first one's average precision is above the other's, on equal draws.

    ValueError where they were measured on different pictures.
    """
    if better.pictures != other.pictures:
        raise ValueError("two detectors are compared on the same pictures")
    return interval(samples(better, draws), samples(other, draws))


def interval(better: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """`gain` of the `samples` of both."""
    low, high = np.percentile(better - other, [2.5, 97.5])
    return float(low), float(high)


def matched(truth: Mapping[str, Any], found: Sequence[Found], kind: Literal["box", "mask"]) -> Matched:
    """What was found on the pictures of `truth` (`CocoSplit.truth`), matched by COCO's rules; neither is changed.

    DataError where there is nothing to find.
    """
    if not truth["images"] or not truth["annotations"]:
        raise DataError("there is nothing to find on these images", fix="images with annotated things on them")
    pictures = sorted(picture["id"] for picture in truth["images"])
    things, seen = _sorted(truth["annotations"]), _sorted(found)
    categories = sorted(category["id"] for category in truth["categories"])
    return Matched(
        categories=tuple(_category(pictures, c, things, seen, kind, truth) for c in categories),
        pictures=tuple(pictures),
    )


def _sorted(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], list[Mapping[str, Any]]]:
    by: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for entry in entries:
        by.setdefault((entry["image_id"], entry["category_id"]), []).append(entry)
    return by


def _category(
    pictures: Sequence[int],
    category: int,
    things: Mapping[tuple[int, int], list[Mapping[str, Any]]],
    seen: Mapping[tuple[int, int], list[Mapping[str, Any]]],
    kind: Literal["box", "mask"],
    truth: Mapping[str, Any],
) -> Category:
    sizes = {picture["id"]: (picture["height"], picture["width"]) for picture in truth["images"]}
    scores, right, aside, places, wanted = [], [], [], [], np.zeros(len(pictures), np.int64)
    for n, picture in enumerate(pictures):
        own = sorted(things.get((picture, category), []), key=lambda thing: thing["iscrowd"])  # crowds last, in order
        best = sorted(seen.get((picture, category), []), key=lambda one: -one["score"])[:MOST]
        crowd = np.array([bool(thing["iscrowd"]) for thing in own], bool)
        wanted[n] = int((~crowd).sum())
        found, ignored = _match(_overlaps(best, own, crowd, kind, sizes[picture]), crowd)
        scores += [one["score"] for one in best]
        right.append(found & ~ignored)
        aside.append(ignored)
        places += [n] * len(best)
    order = np.argsort(-np.array(scores), kind="stable")
    return Category(
        picture=np.array(places, np.int64)[order],
        right=np.concatenate(right, 1)[:, order],
        aside=np.concatenate(aside, 1)[:, order],
        things=wanted,
    )


def _overlaps(
    found: Sequence[Mapping[str, Any]],
    things: Sequence[Mapping[str, Any]],
    crowd: Bits,
    kind: Literal["box", "mask"],
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """(D, things) IoU; with a crowd, the share of the detection that lies in it."""
    if not found or not things:
        return np.zeros((len(found), len(things)))
    mask = library("mask")
    a, b = ([of_kind(one, kind, size) for one in some] for some in (found, things))
    return np.asarray(mask.iou(a, b, crowd.astype(np.uint8).tolist())).reshape(len(found), len(things))


def _match(iou: NDArray[np.float64], crowd: Bits) -> tuple[Bits, Bits]:
    """(t, D) whether each detection, best first, has a thing that none before it took, and whether that is a crowd.

    It takes the thing of largest IoU; of several the last one; a crowd only where nothing else is left, and any number does.
    """
    found, ignored = (np.zeros((len(THRESHOLDS), len(iou)), bool) for _ in range(2))
    for i, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(crowd), bool)
        for d, row in enumerate(iou):
            for those in (~crowd & free, crowd):
                enough = those & (row >= min(threshold, 1 - EDGE))
                if enough.any():
                    best = len(row) - 1 - int(np.where(enough, row, -1)[::-1].argmax())
                    found[i, d], ignored[i, d], free[best] = True, crowd[best], crowd[best]
                    break
    return found, ignored
