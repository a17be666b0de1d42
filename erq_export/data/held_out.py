"""Images to measure on: which of a source, prepared for a model, decoded as often as they are looked at."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from erq_export.contract.preprocess import Preprocess
from erq_export.data.batches import batches
from erq_export.data.images import ImageSource

BATCH = 32
REMEMBERED = 2**28  # bytes of pixels that are kept decoded: 256 MiB, some 400 images of 224 × 224


class Images(Protocol):
    """Prepared images, and their labels (n,) int64 where they are known."""

    @property
    def labels(self) -> Tensor | None: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def pixels(self, share: range | None = None) -> Iterator[Tensor]:
        """(≤ 32, C, H, W) float32 at a time: the batches whose numbers are in `share`, in order; all, where it is None."""
        ...


def n_batches(images: Images) -> int:
    """How many batches there are."""
    return -(-len(images) // BATCH)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Images (n, C, H, W) that are prepared already; `fingerprint` is the hash of their pixels."""

    tensor: Tensor
    fingerprint: str
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tensor)

    def pixels(self, share: range | None = None) -> Iterator[Tensor]:
        """As of `Images`."""
        every = self.tensor.split(BATCH)
        yield from every if share is None else (every[i] for i in share)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """All images of `source`, or `limit` of them, evenly spread. Few images are decoded once, many anew at every look, by so many
    `workers` (0: by this process)."""

    source: ImageSource
    preprocess: Preprocess
    limit: int | None = None
    workers: int = 0
    _decoded: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)  # by number of the batch

    @cached_property
    def chosen(self) -> list[int]:
        """Positions in the source, ascending."""
        n = len(self.source)
        wanted = n if self.limit is None else min(self.limit, n)
        return [i * n // wanted for i in range(wanted)]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def names(self) -> list[str]:
        """Of the chosen images, in order."""
        return [self.source.name(i) for i in self.chosen]

    @cached_property
    def labels(self) -> Tensor | None:
        """(n,) int64, where they are known."""
        labels = self.source.labels
        return None if labels is None else torch.tensor([labels[i] for i in self.chosen])

    @cached_property
    def fingerprint(self) -> str:
        """What decides the pixels: the source's own fingerprint, which images, how they are prepared."""
        text = f"{self.source.fingerprint}\0{self.chosen}\0{sorted(self.preprocess.to_json().items())}"
        return hashlib.sha256(text.encode()).hexdigest()

    def pixels(self, share: range | None = None) -> Iterator[Tensor]:
        """As of `Images`."""
        wanted = range(n_batches(self)) if share is None else share
        missing = [i for i in wanted if i not in self._decoded]
        fresh = batches(
            self.source,
            self.preprocess,
            [j for i in missing for j in self.chosen[i * BATCH : (i + 1) * BATCH]],
            BATCH,
            workers=self.workers,
        )
        channels, height, width = self.preprocess.input_size
        remember = len(self) * channels * height * width * 4 <= REMEMBERED
        for i in wanted:
            batch = self._decoded[i] if i in self._decoded else next(fresh)
            if remember:
                self._decoded[i] = batch
            yield batch


def some(images: Images, most: int) -> Images:
    """At most so many of the images, evenly spread; nothing is decoded yet."""
    if len(images) <= most:
        return images
    if isinstance(images, HeldOut):
        return HeldOut(source=images.source, preprocess=images.preprocess, limit=most, workers=images.workers)
    chosen = [i * len(images) // most for i in range(most)]
    pixels = images.tensor[chosen] if isinstance(images, Prepared) else torch.cat(list(images.pixels()))[chosen]
    return Prepared(tensor=pixels, fingerprint=hashlib.sha256(f"{images.fingerprint}\0{chosen}".encode()).hexdigest())
