"""Which classes a runner gives images, and what it puts out: the images one batch at a time, little kept of each.

Letters:  n images, c classes, m ≤ n images whose outputs are kept, k numbers an output
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.accuracy import Accuracy, ClassDrop, Judged, Share
from erq_export.contract.errors import DataError
from erq_export.data.held_out import Images

from ..runners import Runner
from .distance import cosine, relative_l2
from .shares import paired, share

MOST = 5  # classes kept of an image
WORST = 10  # classes told of
KEPT_BYTES = 2**25  # of outputs, float32: 8000 images of 1000 classes


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """top (n, ≤ 5) int64: the classes of every image, the likeliest first, empty (n, 0) where a model has no head; outputs
    (m, k) float32 of m images, evenly spread; labels (n,) where they are known."""

    top: Tensor
    outputs: Tensor
    labels: Tensor | None
    n_classes: int

    @property
    def right(self) -> Tensor:
        """(n,) bool: is the first class right? ValueError without labels."""
        return self._among(1)

    def top1(self) -> float:
        """Share of images whose first class is right, in per cent."""
        return _percent(self.right)

    def top5(self) -> float:
        """Share of images whose class is among the first five, in per cent."""
        return _percent(self._among(MOST))

    def agreement(self, other: "Decisions") -> float:
        """Share of images that both put first in the same class, in per cent."""
        return _percent(self.same(other))

    def same(self, other: "Decisions") -> Tensor:
        """(n,) bool: do both put an image first in the same class?"""
        return self.top[:, 0] == other.top[:, 0]

    def judged(self, exact: "Decisions") -> Judged:
        """Beside the float model's decisions on the same images."""
        labelled = self.labels is not None
        return Judged(
            top1=share(self.right) if labelled else None,
            top5=share(self._among(MOST)) if labelled and self.n_classes > MOST else None,
            agreement=share(self.same(exact)) if self.n_classes else None,
            paired=paired(exact.right, self.right) if labelled else None,
            error=relative_l2(self.outputs, exact.outputs),
            cosine=cosine(self.outputs, exact.outputs),
        )

    def _among(self, k: int) -> Tensor:
        if self.labels is None:
            raise ValueError("the images have no labels")
        return (self.top[:, :k] == self.labels[:, None]).any(1)


def accuracy(exact: Decisions, reference: Decisions, graphs: dict[str, Decisions]) -> Accuracy:
    """All runners on the same images; `exact` are the float model's decisions."""
    labelled = exact.labels is not None
    return Accuracy(
        n_images=len(exact.top),
        n_compared=len(exact.outputs),
        outputs="logits" if exact.n_classes else "features",
        float_top1=share(exact.right) if labelled else None,
        float_top5=share(exact._among(MOST)) if labelled and exact.n_classes > MOST else None,
        reference=reference.judged(exact),
        graphs={name: found.judged(exact) for name, found in graphs.items()},
        as_reference=_as_reference(reference, graphs),
        worst=worst(exact, reference) if labelled else (),
    )


def _as_reference(reference: Decisions, graphs: dict[str, Decisions]) -> dict[str, Share]:
    return {name: share(found.same(reference)) for name, found in graphs.items() if found.n_classes}


def worst(exact: Decisions, reference: Decisions) -> tuple[ClassDrop, ...]:
    """The classes that lose most images from float to reference, the first index on ties; none that loses nothing."""
    if exact.labels is None:
        return ()
    n = torch.bincount(exact.labels, minlength=exact.n_classes)
    before, behind = (torch.bincount(exact.labels[d.right], minlength=len(n)) for d in (exact, reference))
    order = (before - behind).sort(descending=True, stable=True).indices[:WORST].tolist()
    return tuple(
        ClassDrop(label=i, n_images=int(n[i]), float_right=int(before[i]), reference_right=int(behind[i]))
        for i in order
        if before[i] > behind[i]
    )


def decide(
    runner: Runner, images: Images, *, headless: bool = False, progress: Callable[[int, int], None] = lambda *_: None
) -> Decisions:
    """Run every image through the runner, a batch at a time; of the outputs at most 32 MiB are kept.

    headless: outputs are features, no class is the largest of them.  DataError, after the first batch, where a label is beyond
    the model's classes.
    """
    tops: list[Tensor] = []
    kept: list[Tensor] = []
    n_classes = seen = 0
    for pixels in images.pixels():
        out = runner.logits(pixels).flatten(1)  # (B, k)
        n_classes = 0 if headless else out.shape[1]
        if not tops:
            check_labels(images.labels, n_classes)
            spread = evenly(len(images), KEPT_BYTES // (4 * out.shape[1]))
        ranked = out[:, :n_classes].sort(dim=1, descending=True, stable=True).indices
        tops.append(ranked[:, :MOST].cpu())
        kept.append(out[[i - seen for i in spread if seen <= i < seen + len(out)]].cpu())
        seen += len(out)
        progress(seen, len(images))
    return Decisions(top=torch.cat(tops), outputs=torch.cat(kept), labels=images.labels, n_classes=n_classes)


def evenly(n: int, most: int) -> list[int]:
    """At most so many of n positions, at least one, evenly spread."""
    m = max(1, min(n, most))
    return [i * n // m for i in range(m)]


def check_labels(labels: Tensor | None, n_classes: int) -> None:
    """DataError where a label is beyond the model's classes."""
    if labels is not None and (largest := int(labels.max())) >= n_classes:
        raise DataError(
            f"--val has class index {largest}, the model has {n_classes} classes",
            fix="a validation folder of the model's own classes, or --class-map FILE",
        )


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())
