"""Which anchors may hold a thing: the best of every level, moved, without those that lie on each other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from erq_export.models.detectors.anchors import anchors
from erq_export.models.detectors.body import Pyramid
from erq_export.models.detectors.boxes import clipped, decode

BEST = 1000  # of a level before overlaps are removed, and of all levels after it
OVERLAP = 0.7  # IoU; of two boxes of one level that overlap more, the better stays


class Candidates(NamedTuple):
    """What may become a proposal: the best of every level."""

    boxes: Tensor  # (n, 4) in pixels of the canvas
    scores: Tensor  # (n,)
    levels: Tensor  # (n,)


def proposals(pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
    """(n ≤ 1000, 4) boxes in pixels of the canvas, best first, of the one image in the pyramid, whose pixels end at `size`.

    No box is too small to stay; the published weights were measured so.
    """
    best = [logits.topk(min(BEST, len(logits))).indices for logits in objectness_of(pyramid)]
    found = candidates(pyramid, size, best)
    return found.boxes[batched_nms(found.boxes, found.scores, found.levels, OVERLAP)[:BEST]]


def objectness_of(pyramid: Pyramid) -> list[Tensor]:
    """(h · w · A,) logits of every level, in the order of its anchors."""
    return [level[0].permute(1, 2, 0).flatten() for level in pyramid.objectness]


def candidates(pyramid: Pyramid, size: tuple[int, int], best: Sequence[Tensor]) -> Candidates:
    """best: the indices of the anchors of each level that are looked at."""
    boxes, scores, levels = [], [], []
    places = anchors([(m.shape[2], m.shape[3]) for m in pyramid.maps], pyramid.maps[0])
    every = zip(places, objectness_of(pyramid), pyramid.deltas, best, strict=True)
    for level, (all_anchors, logits, deltas, chosen) in enumerate(every):
        moves = deltas[0].permute(1, 2, 0).reshape(-1, 4)
        boxes.append(clipped(decode(moves[chosen], all_anchors[chosen], (1, 1, 1, 1)), size))
        scores.append(logits[chosen].sigmoid())
        levels.append(torch.full_like(chosen, level))
    return Candidates(torch.cat(boxes), torch.cat(scores), torch.cat(levels))
