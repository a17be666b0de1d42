"""Which classes a runner gives images, and what follows: top-1, top-5, agreement of two runners."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.data.held_out import Images

from ..runners import Runner

MOST = 5  # classes kept of an image


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """top (n, ≤ 5) int64: the classes of every image, the likeliest first; labels (n,) where they are known."""

    top: Tensor
    labels: Tensor | None
    n_classes: int

    def top1(self) -> float:
        """Share of images whose first class is right, in per cent."""
        return self._share(1)

    def top5(self) -> float:
        """Share of images whose class is among the first five, in per cent."""
        return self._share(MOST)

    def agreement(self, other: "Decisions") -> float:
        """Share of images that both put first in the same class, in per cent."""
        return 100 * float((self.top[:, 0] == other.top[:, 0]).double().mean())

    def _share(self, k: int) -> float:
        if self.labels is None:
            raise ValueError("the images have no labels")
        return 100 * float((self.top[:, :k] == self.labels[:, None]).any(1).double().mean())


def decide(runner: Runner, images: Images, *, progress: Callable[[int, int], None] = lambda *_: None) -> Decisions:
    """Run every image through the runner, a batch at a time; logits are not kept.

    DataError, after the first batch, where a label is beyond the model's classes.
    """
    found: list[Tensor] = []
    n_classes = 0
    for pixels in images.pixels():
        logits = runner.logits(pixels)  # (B, n_classes)
        n_classes = logits.shape[1]
        found.append(logits.sort(dim=1, descending=True, stable=True).indices[:, :MOST].cpu())
        if len(found) == 1:
            check_labels(images.labels, n_classes)
        progress(sum(len(top) for top in found), len(images))
    return Decisions(top=torch.cat(found), labels=images.labels, n_classes=n_classes)


def check_labels(labels: Tensor | None, n_classes: int) -> None:
    """DataError where a label is beyond the model's classes."""
    if labels is not None and (largest := int(labels.max())) >= n_classes:
        raise DataError(
            f"--val has class index {largest}, the model has {n_classes} classes",
            fix="a validation folder of the model's own classes, or --class-map FILE",
        )
