"""How many of one detector's detections another makes too: the same class, nearly the same box, score and mask."""

from collections.abc import Sequence

from erq_export.contract.detection import Likeness

from .average_precision import Found, library, of_kind

LEAST_OVERLAP = 0.95  # IoU of boxes, and of masks
SCORE = 0.01


def likeness(images: Sequence[int], wanted: Sequence[Found], found: Sequence[Found]) -> Likeness:
    """Of the detections `wanted`, on images with these ids. Each detection is taken for one at most, in any order.

    Boxes without area are left out: all of them look alike to the heads, and which of equals stays is chance.
    """
    n = taken = alike = 0
    for image in images:
        a, b = ([one for one in some if one["image_id"] == image and _has_area(one)] for some in (wanted, found))
        same = _pairs(a, b)
        n, taken, alike = n + len(a), taken + same, alike + (same == len(a) == len(b))
    return Likeness(n=n, found=taken, n_pictures=len(images), alike=alike)


def _has_area(one: Found) -> bool:
    _, _, width, height = one["bbox"]
    return bool(width > 0 and height > 0)


def _pairs(a: Sequence[Found], b: Sequence[Found]) -> int:
    """How many of `a` have a counterpart in `b`."""
    if not a or not b:
        return 0
    mask, size = library("mask"), tuple(a[0]["segmentation"]["size"])
    boxes, masks = (
        mask.iou([of_kind(one, kind, size) for one in a], [of_kind(one, kind, size) for one in b], [0] * len(b))
        for kind in ("box", "mask")
    )
    free, pairs = set(range(len(b))), 0
    for i, one in enumerate(a):
        near = [
            j
            for j in free
            if b[j]["category_id"] == one["category_id"]
            and abs(b[j]["score"] - one["score"]) <= SCORE
            and min(boxes[i][j], masks[i][j]) >= LEAST_OVERLAP
        ]
        if near:
            free.remove(max(near, key=lambda j: boxes[i][j]))
            pairs += 1
    return pairs
