"""Which anchors may hold a thing: the best of every level, moved, without those that lie on each other."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from erq_export.models.detectors.anchors import anchors
from erq_export.models.detectors.body import Pyramid
from erq_export.models.detectors.boxes import clipped, decode

BEST = 1000  # of a level before overlaps are removed, and of all levels after it
OVERLAP = 0.7  # IoU; of two boxes of one level that overlap more, the better stays


def proposals(pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
    """(n ≤ 1000, 4) boxes in pixels of the canvas, best first, of the one image in the pyramid, whose pixels end at `size`.

    No box is too small to stay; the published weights were measured so.
    """
    boxes, scores, levels = [], [], []
    places = anchors([(m.shape[2], m.shape[3]) for m in pyramid.maps], pyramid.maps[0])
    for level, (all_anchors, objectness, deltas) in enumerate(
        zip(places, pyramid.objectness, pyramid.deltas, strict=True)
    ):
        logits = objectness[0].permute(1, 2, 0).flatten()  # (h · w · A,)
        moves = deltas[0].permute(1, 2, 0).reshape(-1, 4)
        best = logits.topk(min(BEST, len(logits))).indices
        boxes.append(clipped(decode(moves[best], all_anchors[best], (1, 1, 1, 1)), size))
        scores.append(logits[best].sigmoid())
        levels.append(torch.full_like(best, level))
    found = torch.cat(boxes)
    return found[batched_nms(found, torch.cat(scores), torch.cat(levels), OVERLAP)[:BEST]]
