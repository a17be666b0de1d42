"""A whole detector as one function of tensors that can be traced: picture on a canvas → boxes, labels, scores, masks.

The glue of `detector` once more, without loops over boxes and without branches on data: every map pools all boxes, those of other
levels shrunk to nothing, and overlaps are removed within a level or a class by moving those of each to a place of its own. So
far out float32 is coarser (1/128 of a pixel for the last of 80 classes): overlaps near the threshold may be decided otherwise.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from erq_export.models.detectors.anchors import STRIDES, anchors
from erq_export.models.detectors.body import Pyramid
from erq_export.models.detectors.boxes import Scales, decode
from erq_export.models.detectors.detector import LEAST_SCORE, MOST, SCALES, Detector, joined
from erq_export.models.detectors.detector import OVERLAP as CLASS_OVERLAP
from erq_export.models.detectors.heads import BOX_SIDE, MASK_SIDE
from erq_export.models.detectors.pooling import POOLED, levels_of
from erq_export.models.detectors.proposals import BEST, OVERLAP

TAKES = ("pixels", "size")
GIVES = ("boxes", "labels", "scores", "masks")


class Whole(nn.Module):
    """One detector, for one canvas and one picture at a time.

    pixels (1, 3, H, W);  size (2,) int64 height and width of the picture on the canvas.  Gives, best first, boxes (n, 4) in
    pixels of the canvas, labels (n,), scores (n,) and masks (n, 28, 28), probabilities within the box; n may be 0.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.body, self.box, self.mask = detector.body, detector.box, detector.mask
        self.side = float(max(detector.body.canvas) + 1)  # boxes of two levels or classes lie further apart than that

    def forward(self, pixels: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        limit = size.flip(0).repeat(2).to(pixels.dtype)  # (4,) width, height, width, height
        pyramid = self.body(pixels)
        boxes, every = self._proposals(pyramid, limit), list[Tensor]()
        for i, head in enumerate(self.box):
            logits, deltas = head(_pooled(pyramid.maps, boxes, BOX_SIDE))
            every.append(logits)
            if i + 1 < len(self.box):
                best = logits[:, 1:].argmax(1) + 1
                boxes = _clipped(_of_class(deltas, best, boxes, SCALES[i]), limit)
        scores = torch.stack(every).mean(0).softmax(1)[:, 1:]  # (n, K)
        of_classes = _clipped(decode(deltas[:, 1:], boxes, SCALES[len(every) - 1]), limit)  # (n, K, 4)
        boxes, labels, scores = self._kept(of_classes, scores)
        inside = _pooled(pyramid.maps, boxes, MASK_SIDE)
        return boxes, labels, scores, joined([head(inside) for head in self.mask], labels)

    def _proposals(self, pyramid: Pyramid, limit: Tensor) -> Tensor:
        """(n ≤ 1000, 4), as `proposals.proposals`."""
        boxes, scores, levels = [], [], []
        places = anchors([(m.shape[2], m.shape[3]) for m in pyramid.maps], pyramid.maps[0])
        for level, (at, objectness, deltas) in enumerate(zip(places, pyramid.objectness, pyramid.deltas, strict=True)):
            logits = objectness[0].permute(1, 2, 0).flatten()
            moves = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            best = logits.topk(min(BEST, len(logits))).indices
            boxes.append(_clipped(decode(moves[best], at[best], (1, 1, 1, 1)), limit))
            scores.append(logits[best].sigmoid())
            levels.append(torch.full_like(scores[-1], level))
        found = torch.cat(boxes)
        return found[self._apart(found, torch.cat(scores), torch.cat(levels), OVERLAP)[:BEST]]

    def _kept(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `detector.kept`."""
        at, label = (scores > LEAST_SCORE).nonzero(as_tuple=True)
        boxes, scores = boxes[at, label], scores[at, label]
        best = self._apart(boxes, scores, label.to(scores.dtype), CLASS_OVERLAP)[:MOST]
        return boxes[best], label[best] + 1, scores[best]

    def _apart(self, boxes: Tensor, scores: Tensor, group: Tensor, overlap: float) -> Tensor:
        """Of boxes (n, 4) that overlap within a group (n,), the better ones' indices, best first."""
        best: Tensor = nms(boxes + (group * self.side)[:, None], scores, overlap)
        return best


def _pooled(maps: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
    """(n, C, side, side), as `pooling.pooled`."""
    level, out = levels_of(boxes)[:, None], list[Tensor]()
    for i, (m, stride) in enumerate(zip(maps[:POOLED], STRIDES[:POOLED], strict=True)):
        own = torch.where(level == i, boxes, 0)
        rois = torch.cat((torch.zeros_like(own[:, :1]), own), 1)  # (n, 5): all of the one picture
        inside = roi_align(m, rois, side, 1 / stride, sampling_ratio=0, aligned=True)
        out.append(torch.where((level == i)[:, :, None, None], inside, 0))
    return torch.stack(out).sum(0)


def _of_class(deltas: Tensor, best: Tensor, boxes: Tensor, scales: Scales) -> Tensor:
    """(n, 4) boxes moved by the offsets (n, 1 + K, 4) of one class each."""
    chosen = deltas.gather(1, best[:, None, None].expand(-1, 1, 4))[:, 0]
    return decode(chosen, boxes, scales)


def _clipped(boxes: Tensor, limit: Tensor) -> Tensor:
    """(…, 4) boxes within the picture."""
    return torch.minimum(boxes.clamp(min=0), limit)
