"""The reference, breaking its ties as the graph of the whole broke them: then both find the same.

At every quantizer and at every choice of the glue the reference computes its own numbers, looks how far the graph's choice is
from a tie by them (`ties`), and goes on with that choice. So what follows from a tie is the same on both sides, and all numbers
are equal up to rounding, through the whole detector and on any picture. Boxes go on as the graph has them, as RoIAlign's number
of samples is a choice too. What is found at the end must be what the graph found.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from erq_export.contract.followed import Followed
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.progress import Progress
from erq_export.models.detectors.anchors import STRIDES
from erq_export.models.detectors.body import Pyramid
from erq_export.models.detectors.detector import LEAST_SCORE, MOST, OVERLAP, Detector, joined, moved, scored
from erq_export.models.detectors.framing import Framed
from erq_export.models.detectors.heads import BOX_SIDE, MASK_SIDE
from erq_export.models.detectors.pooling import POOLED, between_levels, pooled_from
from erq_export.models.detectors.proposals import BEST, candidates, objectness_of
from erq_export.models.detectors.proposals import OVERLAP as OF_PROPOSALS
from erq_export.models.detectors.whole import GIVES

from ...metrics.distance import ROUNDING
from . import ties
from .choices import Choices, WatchedDetector
from .codes import follows
from .ledger import Astray, Ledger

ULPS = 2.0**-22  # of a number in float32: two units in its last place


@torch.no_grad()
def follow_detector(
    reference: Detector,
    path: Path,
    manifest: GraphManifest,
    pictures: Sequence[Framed],
    *,
    progress: Progress = lambda *_: None,
) -> Followed:
    """reference: on the CPU;  path: the graph of the whole, for the canvas of all pictures. DataError where file and manifest do
    not belong together, or it has not the choices of such a graph.

    Memory: the codes of all layers for one picture, a byte each (of Swin-T at 800 × 1344 half a gigabyte).
    """
    if not pictures:
        raise ValueError("no picture to follow the graph on")
    watched, ledger, n_found = WatchedDetector(path, manifest, n_heads=len(reference.box)), Ledger(), 0
    for i, framed in enumerate(pictures):
        progress("ties of the whole detector", i, len(pictures))
        choices = watched(framed)
        if i == 0:  # which operators are fused does not depend on the picture
            ledger.as_deployed = watched.runs_as_it_is(framed, choices)
        n_found += len(choices.values[GIVES[0]])
        reference.body.take(framed.pixels)
        try:
            with follows(reference, watched.places, choices.values, ledger):
                Picture(reference, framed, choices, ledger).follow()
        except Astray:
            continue
    return ledger.followed(len(pictures), n_found)


class Picture:
    """The glue of `models.detectors.detector` for one picture, by the graph's choices."""

    def __init__(self, reference: Detector, framed: Framed, choices: Choices, ledger: Ledger) -> None:
        self.reference, self.framed, self.choices, self.ledger = reference, framed, choices, ledger
        self.side = max(framed.canvas)
        self.pixels = ROUNDING * self.side

    def follow(self) -> None:
        """Through to what is found."""
        pyramid: Pyramid = self.reference.body(self.framed.pixels)
        boxes, scores = self._scored(pyramid, self._proposals(pyramid))
        boxes, labels, scores = self._detections(boxes, scores)
        found = self.choices.values
        self.ledger.gap("labels", labels, found["labels"], 0.0)
        self.ledger.gap("boxes", boxes, found["boxes"], self.pixels)
        self.ledger.gap("scores", scores, found["scores"], ROUNDING)
        self.ledger.gap("masks", self._masks(pyramid, boxes, labels), found["masks"], ROUNDING)

    def _proposals(self, pyramid: Pyramid) -> Tensor:
        for logits, best in zip(objectness_of(pyramid), self.choices.best, strict=True):
            self.ledger.as_many("anchors", min(BEST, len(logits)), len(best))
            self.ledger.tie("anchors", ties.among_best(logits, best, off=ROUNDING))
        found = candidates(pyramid, self.framed.size, self.choices.best)
        suppression = ties.Suppression(found.boxes, found.scores, found.levels, OF_PROPOSALS)
        largest = max(float(logits.abs().max()) for logits in pyramid.objectness)
        # Of sigmoids. ONNX Runtime's is off by up to 1.7e-7, however small it is (measured).
        off = ROUNDING * largest * found.scores * (1 - found.scores) + ULPS
        self._stay("proposals", suppression, self.choices.proposals, off, n_groups=len(STRIDES))
        return found.boxes[self.choices.proposals[:BEST]]

    def _scored(self, pyramid: Pyramid, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n, K) of the classes and, for each, the box (n, K, 4)."""
        every, size = list[Tensor](), self.framed.size
        for i, head in enumerate(self.reference.box):
            x, boxes = self._pooled(pyramid, i, boxes, BOX_SIDE)
            logits, deltas = head(x)
            every.append(logits)
            if i + 1 < len(self.reference.box):
                classes = self.choices.classes[i]
                self.ledger.as_many("classes", len(boxes), len(classes))
                self.ledger.tie("classes", ties.largest(logits[:, 1:], classes, off=ROUNDING))
                boxes = moved(deltas, classes + 1, boxes, i, size)
        scores, of_classes = scored(every, deltas, boxes, size)
        return of_classes, scores

    def _detections(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at, label = self.choices.above
        above = torch.zeros_like(scores, dtype=torch.bool)
        above[at, label] = True
        self.ledger.tie("threshold", ties.above(scores, LEAST_SCORE, above, off=ROUNDING))
        boxes, scores, stay = boxes[at, label], scores[at, label], self.choices.detections
        suppression = ties.Suppression(boxes, scores, label, OVERLAP)
        self._stay("detections", suppression, stay, torch.full_like(scores, ROUNDING), n_groups=above.shape[1])
        stay = stay[:MOST]
        return boxes[stay], label[stay] + 1, scores[stay]

    def _masks(self, pyramid: Pyramid, boxes: Tensor, labels: Tensor) -> Tensor:
        if not len(boxes):
            return boxes.new_zeros(0, 2 * MASK_SIDE, 2 * MASK_SIDE)
        x, _ = self._pooled(pyramid, len(self.reference.box), boxes, MASK_SIDE)
        return joined([head(x) for head in self.reference.mask], labels)

    def _stay(self, kind: str, suppression: ties.Suppression, stay: Tensor, off: Tensor, *, n_groups: int) -> None:
        far_out = self.side * n_groups * ULPS  # the graph moves the boxes of each group to a place of its own
        self.ledger.tie(kind, suppression.chosen(stay, pixels=self.pixels + far_out, off=off))

    def _pooled(self, pyramid: Pyramid, i: int, own: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """What the i-th head sees, and of which boxes."""
        boxes, levels = self.choices.boxes[i], self.choices.levels[i]
        self.ledger.gap("boxes", own, boxes, self.pixels)
        self.ledger.tie("levels", ties.on_levels(between_levels(boxes), levels, POOLED, off=ROUNDING))
        return pooled_from(pyramid.maps, levels, boxes, side), boxes
