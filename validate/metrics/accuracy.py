"""Top-1 accuracy of several runners on the same images, decoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.preprocess import Preprocess
from erq_export.data.images import ImageSource, batches

from ..runners import Runner

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predicted class of every image, by each runner; labels where they are known. Tensors (n,) int64."""

    labels: Tensor | None
    by_runner: dict[str, Tensor]

    def top1(self, runner: str) -> float:
        """Share of images whose class is right, in per cent."""
        if self.labels is None:
            raise ValueError("the images have no labels")
        return 100 * float((self.by_runner[runner] == self.labels).double().mean())

    def agreement(self, a: str, b: str) -> float:
        """Share of images that both runners put in the same class, in per cent."""
        return 100 * float((self.by_runner[a] == self.by_runner[b]).double().mean())


def predict(
    runners: Sequence[Runner],
    source: ImageSource,
    preprocess: Preprocess,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Predictions:
    """Run every image (or `limit` images, evenly spread) through every runner, a batch at a time.

    DataError where a label is beyond the model's classes.
    """
    chosen = evenly_spread(len(source), limit)
    n = len(chosen)
    found: dict[str, list[Tensor]] = {runner.name: [] for runner in runners}
    done = 0
    for pixels in batches(source, preprocess, chosen, BATCH):
        for runner in runners:
            logits = runner.logits(pixels)
            found[runner.name].append(logits.argmax(1).cpu())
        done += len(pixels)
        progress(done, n)
        if done == len(pixels):
            _check_labels(source, n_classes=logits.shape[1])
    labels = None if source.labels is None else torch.tensor([source.labels[i] for i in chosen])
    return Predictions(labels=labels, by_runner={name: torch.cat(parts) for name, parts in found.items()})


def evenly_spread(n: int, limit: int | None) -> list[int]:
    """Which of n images are measured: all, or `limit` of them."""
    wanted = n if limit is None else min(limit, n)
    return [i * n // wanted for i in range(wanted)]


def _check_labels(source: ImageSource, *, n_classes: int) -> None:
    if source.labels is not None and max(source.labels) >= n_classes:
        raise DataError(
            f"--val has class index {max(source.labels)}, the model has {n_classes} classes",
            fix="a validation folder of the model's own classes, or --class-map FILE",
        )
