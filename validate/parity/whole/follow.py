"""The reference, breaking its ties as the graph of the whole broke them: then both find the same.

At every quantizer and at every choice of the glue the reference computes its own numbers, looks how far the graph's choice is
from a tie by them (`ties`), and goes on with that choice. So what follows from a tie is the same on both sides, and all numbers
are equal up to rounding, through the whole detector and on any picture. Boxes go on as the graph has them, as RoIAlign's number
of samples is a choice too. What is found at the end must be what the graph found.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from erq_export.contract.followed import CODES, Followed
from erq_export.contract.manifest import GraphManifest, Quantized
from erq_export.contract.progress import Progress
from erq_export.contract.quantized import QuantLayer, QuantOperand
from erq_export.models.detectors.anchors import STRIDES
from erq_export.models.detectors.body import Pyramid
from erq_export.models.detectors.detector import LEAST_SCORE, MOST, OVERLAP, Detector, joined, moved, scored
from erq_export.models.detectors.framing import Framed
from erq_export.models.detectors.heads import BOX_SIDE, MASK_SIDE
from erq_export.models.detectors.pooling import FINEST, POOLED, between_levels, pooled_from
from erq_export.models.detectors.proposals import BEST, candidates, objectness_of
from erq_export.models.detectors.proposals import OVERLAP as OF_PROPOSALS

from ...metrics.distance import ROUNDING
from . import ties
from .choices import Choices, Watched
from .ledger import Astray, Ledger

ULP = (
    2.0**-22
)  # of a number, twice: `models.detectors.whole` moves the boxes of each group to a place of its own, that far out


@torch.no_grad()
def follow(
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
    watched, ledger, n_found = Watched(path, manifest, n_heads=len(reference.box)), Ledger(), 0
    for i, framed in enumerate(pictures):
        progress("ties of the whole detector", i, len(pictures))
        choices = watched(framed)
        n_found += len(choices.found["boxes"])
        reference.body.take(framed.pixels)
        try:
            with _codes(reference, watched.places, choices.codes, ledger):
                _Picture(reference, framed, choices, ledger).follow()
        except Astray:
            continue
    return Followed(n_pictures=len(pictures), n_found=n_found, ties=ledger.ties, values=ledger.values)


@contextmanager
def _codes(
    reference: nn.Module, places: Mapping[str, Sequence[Quantized]], codes: Mapping[str, Tensor], ledger: Ledger
) -> Iterator[None]:
    """Every layer and operand of the reference gets, in the place of its input x, the graph's codes for it, while this lasts. A
    layer that is called several times stands as often in the file."""
    calls = Counter[str]()

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not isinstance(module, QuantLayer | QuantOperand):
            raise TypeError(f"a {type(module).__name__} has no codes")
        x, place = args[0], places[module.path][calls[module.path]]
        calls[module.path] += 1
        q = codes[place.codes].reshape(x.shape).float() - place.zero_point
        ledger.tie(CODES, ties.rounded(module.grid, x, q), ROUNDING)
        return (module.grid.dequantize(q), *args[1:])

    quantized = [module for module in reference.modules() if isinstance(module, QuantLayer | QuantOperand)]
    handles = [module.register_forward_pre_hook(hook) for module in quantized]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Picture:
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
        found = self.choices.found
        self.ledger.apart("labels", labels, found["labels"], 0.0)
        self.ledger.apart("boxes", boxes, found["boxes"], self.pixels)
        self.ledger.apart("scores", scores, found["scores"], ROUNDING)
        self.ledger.apart("masks", self._masks(pyramid, boxes, labels), found["masks"], ROUNDING)

    def _proposals(self, pyramid: Pyramid) -> Tensor:
        for logits, best in zip(objectness_of(pyramid), self.choices.best, strict=True):
            self._as_many(best, min(BEST, len(logits)))
            self.ledger.tie("anchors", ties.among_best(logits, best), ROUNDING)
        found = candidates(pyramid, self.framed.size, self.choices.best)
        suppression = ties.Suppression(found.boxes, found.scores, found.levels, OF_PROPOSALS)
        self._stay("proposals", suppression, self.choices.proposals, n_groups=len(STRIDES))
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
                self._as_many(classes, len(boxes))
                self.ledger.tie("classes", ties.largest(logits[:, 1:], classes), ROUNDING)
                boxes = moved(deltas, classes + 1, boxes, i, size)
        scores, of_classes = scored(every, deltas, boxes, size)
        return of_classes, scores

    def _detections(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at, label = self.choices.above
        above = torch.zeros_like(scores, dtype=torch.bool)
        above[at, label] = True
        self.ledger.tie("scores", ties.above(scores, LEAST_SCORE, above), ROUNDING)
        boxes, scores, stay = boxes[at, label], scores[at, label], self.choices.detections
        suppression = ties.Suppression(boxes, scores, label, OVERLAP)
        self._stay("detections", suppression, stay, n_groups=above.shape[1])
        stay = stay[:MOST]
        return boxes[stay], label[stay] + 1, scores[stay]

    def _masks(self, pyramid: Pyramid, boxes: Tensor, labels: Tensor) -> Tensor:
        if not len(boxes):
            return boxes.new_zeros(0, 2 * MASK_SIDE, 2 * MASK_SIDE)
        x, _ = self._pooled(pyramid, len(self.reference.box), boxes, MASK_SIDE)
        return joined([head(x) for head in self.reference.mask], labels)

    def _stay(self, kind: str, suppression: ties.Suppression, stay: Tensor, *, n_groups: int) -> None:
        far_out = self.side * n_groups * ULP
        self.ledger.tie(kind, suppression.chosen(stay, pixels=self.pixels + far_out, score=ROUNDING), 1.0)

    def _pooled(self, pyramid: Pyramid, i: int, own: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """What the i-th head sees, and of which boxes."""
        boxes, levels = self.choices.boxes[i], self.choices.levels[i]
        self.ledger.apart("boxes", own, boxes, self.pixels)
        self.ledger.tie("levels", ties.on_levels(between_levels(own), levels, POOLED), self.pixels / FINEST)
        return pooled_from(pyramid.maps, levels, boxes, side), boxes

    def _as_many(self, chosen: Tensor, n: int) -> None:
        if len(chosen) != n:
            self.ledger.apart("choices", torch.zeros(n), torch.zeros(len(chosen)), 0.0)
