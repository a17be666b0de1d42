"""A detector: parts of fixed shapes, and the float glue between them that finds boxes, classes and masks.

Letters:  n boxes (n, 4) in pixels of the canvas;  K classes and the background, which is class 0

Everything with weights is in the parts. What depends on the data (which anchor, how many boxes) is in the glue, so a part can
be another thing that computes the same: a quantized one, an engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from erq_export.models.detectors.architecture import Architecture
from erq_export.models.detectors.body import Body, Pyramid
from erq_export.models.detectors.boxes import Scales, clipped, decode
from erq_export.models.detectors.framing import Framed
from erq_export.models.detectors.heads import BOX_SIDE, MASK_SIDE, BoxHead, MaskHead
from erq_export.models.detectors.pooling import pooled
from erq_export.models.detectors.proposals import proposals

SCALES: tuple[Scales, ...] = (  # of the offsets of each box head in turn
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
)
LEAST_SCORE = 0.05
OVERLAP = 0.5  # IoU; of two boxes of one class that overlap more, the better stays
MOST = 100  # detections of an image


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What computes: one body, and as many box and mask heads as the detector has."""

    body: Callable[[Tensor], Pyramid]
    box: Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]
    mask: Sequence[Callable[[Tensor], Tensor]]


class Detector(nn.Module):
    """The parts in PyTorch, for images on one canvas at a time."""

    def __init__(self, architecture: Architecture, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.architecture = architecture
        self.body = Body(architecture, canvas)
        self.box = nn.ModuleList(BoxHead(architecture) for _ in range(architecture.n_heads))
        self.mask = nn.ModuleList(MaskHead(architecture) for _ in range(architecture.n_heads))

    def parts(self) -> dict[str, nn.Module]:
        """By name: body, box, mask; of a cascade body, box.0, box.1, box.2, mask.0 …"""
        if not self.architecture.cascade:
            return {"body": self.body, "box": self.box[0], "mask": self.mask[0]}
        heads = [(f"{kind}.{i}", head) for kind in ("box", "mask") for i, head in enumerate(getattr(self, kind))]
        return {"body": self.body, **dict(heads)}

    def forward(self, framed: Framed) -> "Detections":
        self.body.take(framed.pixels)
        return detect(Parts(body=self.body, box=tuple(self.box), mask=tuple(self.mask)), framed)


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in one image, best first; boxes in pixels of the image as it was given."""

    boxes: Tensor  # (n, 4) x₁, y₁, x₂, y₂
    labels: Tensor  # (n,) 1 … K
    scores: Tensor  # (n,)
    masks: Tensor  # (n, 28, 28) probabilities within the box

    def cpu(self) -> "Detections":
        """The same on the CPU."""
        return Detections(
            boxes=self.boxes.cpu(), labels=self.labels.cpu(), scores=self.scores.cpu(), masks=self.masks.cpu()
        )


@torch.no_grad()
def detect(parts: Parts, framed: Framed) -> Detections:
    """Everything that the parts find in one image."""
    pyramid = parts.body(framed.pixels)
    scores, boxes = _scored(parts, pyramid, proposals(pyramid, framed.size), framed.size)
    boxes, labels, scores = kept(boxes, scores)
    return Detections(
        boxes=boxes / framed.scale.to(boxes), labels=labels, scores=scores, masks=_masks(parts, pyramid, boxes, labels)
    )


def _scored(parts: Parts, pyramid: Pyramid, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scores (n, K) of the classes and, for each, the box (n, K, 4). The logits of every head stay; boxes are the last one's."""
    every: list[Tensor] = []
    for i, head in enumerate(parts.box):
        logits, deltas = head(pooled(pyramid.maps, boxes, BOX_SIDE))
        every.append(logits)
        if i + 1 < len(parts.box):
            boxes = refined(logits, deltas, boxes, i, size)
    return scored(every, deltas, boxes, size)


def refined(logits: Tensor, deltas: Tensor, boxes: Tensor, i: int, size: tuple[int, int]) -> Tensor:
    """Where the i-th head's best class wants its boxes (n, 4): the next one looks there."""
    return moved(deltas, logits[:, 1:].argmax(1) + 1, boxes, i, size)


def moved(deltas: Tensor, classes: Tensor, boxes: Tensor, i: int, size: tuple[int, int]) -> Tensor:
    """Where one class each (n,), 1 … K, wants the i-th head's boxes (n, 4)."""
    return clipped(decode(deltas[torch.arange(len(classes)), classes], boxes, SCALES[i]), size)


def scored(every: Sequence[Tensor], deltas: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scores (n, K) and boxes (n, K, 4), of each head's logits (n, 1 + K) and the last one's offsets (n, 1 + K, 4).

    Scores are the softmax of the mean of logits, not the mean of softmaxes.
    """
    last = SCALES[len(every) - 1]
    return _probabilities(every)[:, 1:], clipped(decode(deltas[:, 1:], boxes, last), size)


def _probabilities(logits: Sequence[Tensor]) -> Tensor:
    """(n, 1 + K) of what each head says: (n, 1 + K)"""
    return torch.stack(list(logits)).mean(0).softmax(1)


def kept(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of boxes (n, K, 4) and scores (n, K): boxes, labels and scores of the detections, at most 100, best first."""
    at, label = (scores > LEAST_SCORE).nonzero(as_tuple=True)
    boxes, scores = boxes[at, label], scores[at, label]
    best = batched_nms(boxes, scores, label, OVERLAP)[:MOST]
    return boxes[best], label[best] + 1, scores[best]


def _masks(parts: Parts, pyramid: Pyramid, boxes: Tensor, labels: Tensor) -> Tensor:
    """(n, 28, 28): the mean of what the mask heads say of each box's class, as probabilities."""
    if not len(boxes):
        return boxes.new_zeros(0, 2 * MASK_SIDE, 2 * MASK_SIDE)
    x = pooled(pyramid.maps, boxes, MASK_SIDE)
    return joined([head(x) for head in parts.mask], labels)


def joined(every: Sequence[Tensor], labels: Tensor) -> Tensor:
    """(n, 28, 28) probabilities: the mean of what each head's logits (n, 1 + K, 28, 28) say of the boxes' classes."""
    own = labels[:, None, None, None].expand(-1, 1, *every[0].shape[2:])
    return torch.stack([logits.gather(1, own)[:, 0].sigmoid() for logits in every]).mean(0)
