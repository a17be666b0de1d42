"""Which classes a runner gives images, and what it puts out: the images one batch at a time, little kept of each.

Letters:  n images, c classes, m ≤ n images whose outputs are kept, k numbers an output
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from erq_export.contract.accuracy import Judged
from erq_export.contract.errors import DataError
from erq_export.data.held_out import BATCH, Images, n_batches

from ..runners import Runner
from .distance import cosine, relative_l2
from .shares import paired, share

MOST = 5  # classes kept of an image
KEPT_BYTES = 2**25  # of outputs, float32: 8000 images of 1000 classes
SPAN = 32  # batches after which what was found is kept: 1024 images


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
        return self.among(1)

    def top1(self) -> float:
        """Share of images whose first class is right, in per cent."""
        return _percent(self.right)

    def top5(self) -> float:
        """Share of images whose class is among the first five, in per cent."""
        return _percent(self.among(MOST))

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
            top5=share(self.among(MOST)) if labelled and self.n_classes > MOST else None,
            agreement=share(self.same(exact)) if self.n_classes else None,
            paired=paired(exact.right, self.right) if labelled else None,
            error=relative_l2(self.outputs, exact.outputs),
            cosine=cosine(self.outputs, exact.outputs),
        )

    def among(self, k: int) -> Tensor:
        """(n,) bool: is the right class among the first k? ValueError without labels."""
        if self.labels is None:
            raise ValueError("the images have no labels")
        return (self.top[:, :k] == self.labels[:, None]).any(1)


Progress = Callable[[int, int], None]  # images done, of how many
Decide = Callable[[range, Progress], Sequence[Decisions]]  # of the batches with these numbers, one by one


class Spans(Protocol):
    """Where the decisions of a span lie that are made already, by the number of its first batch."""

    def read(self, first: int) -> Decisions | None: ...

    def keep(self, first: int, found: Decisions) -> None: ...


def decide(
    runner: Runner, images: Images, *, headless: bool = False, progress: Progress = lambda *_: None
) -> Decisions:
    """Run every image through the runner, a batch at a time; of the outputs at most 32 MiB are kept.

    headless: outputs are features, no class is the largest of them.  DataError, after the first batch, where a label is beyond
    the model's classes.
    """
    return decide_in_spans(
        images, lambda batches, told: list(decided(runner, images, batches, told, headless=headless)), progress=progress
    )


def decide_in_spans(
    images: Images, do: Decide, *, spans: Spans | None = None, progress: Progress = lambda *_: None
) -> Decisions:
    """The same, so many batches at a time: what `spans` has is not decided again, `do` decides the others.

    As one batch depends on no other, it is the same whoever decides it, and whenever.
    """
    found: list[Decisions] = []
    for first in range(0, n_batches(images), SPAN):
        done = first * BATCH
        part = None if spans is None else spans.read(first)
        if part is None:
            batches = range(first, min(first + SPAN, n_batches(images)))
            part = joined(do(batches, partial(_told, progress, done, len(images))))
            if spans is not None:
                spans.keep(first, part)
        found.append(part)
        progress(done + len(part.top), len(images))
    return replace(joined(found), labels=images.labels)


def _told(progress: Progress, before: int, n: int, done: int, _total: int) -> None:
    progress(before + done, n)


def decided(
    runner: Runner, images: Images, batches: range, progress: Progress = lambda *_: None, *, headless: bool = False
) -> Iterator[Decisions]:
    """Of each of these batches, by number, without labels. DataError as of `decide`."""
    seen = 0
    for i, pixels in zip(batches, images.pixels(batches), strict=True):
        out = runner.logits(pixels).flatten(1)  # (B, k)
        n_classes = 0 if headless else out.shape[1]
        if not seen:
            check_labels(images.labels, n_classes)
            spread = evenly(len(images), KEPT_BYTES // (4 * out.shape[1]))
        ranked = out[:, :n_classes].sort(dim=1, descending=True, stable=True).indices
        start = i * BATCH
        kept = out[[j - start for j in spread if start <= j < start + len(out)]]
        seen += len(out)
        yield Decisions(top=ranked[:, :MOST].cpu(), outputs=kept.cpu(), labels=None, n_classes=n_classes)
        progress(seen, len(images))


def joined(parts: Sequence[Decisions]) -> Decisions:
    """One after another, without labels."""
    top, outputs = torch.cat([part.top for part in parts]), torch.cat([part.outputs for part in parts])
    return Decisions(top=top, outputs=outputs, labels=None, n_classes=parts[0].n_classes)


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
