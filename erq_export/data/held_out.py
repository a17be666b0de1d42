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

    def pixels(self) -> Iterator[Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Images (n, C, H, W) that are prepared already; `fingerprint` is the hash of their pixels."""

    tensor: Tensor
    fingerprint: str
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tensor)

    def pixels(self) -> Iterator[Tensor]:
        """(≤ 32, C, H, W) at a time, in order."""
        yield from self.tensor.split(BATCH)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """All images of `source`, or `limit` of them, evenly spread. Few images are decoded once, many anew at every look."""

    source: ImageSource
    preprocess: Preprocess
    limit: int | None = None
    _decoded: list[Tensor] = field(default_factory=list, repr=False, compare=False)

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

    def pixels(self) -> Iterator[Tensor]:
        """(≤ 32, C, H, W) float32 at a time, in order."""
        if self._decoded:
            yield from self._decoded
            return
        channels, height, width = self.preprocess.input_size
        remember = len(self) * channels * height * width * 4 <= REMEMBERED
        seen = []
        for batch in batches(self.source, self.preprocess, self.chosen, BATCH):
            if remember:
                seen.append(batch)
            yield batch
        self._decoded.extend(seen)


def some(images: Images, most: int) -> Images:
    """At most so many of the images, evenly spread; nothing is decoded yet."""
    if len(images) <= most:
        return images
    if isinstance(images, HeldOut):
        return HeldOut(source=images.source, preprocess=images.preprocess, limit=most)
    chosen = [i * len(images) // most for i in range(most)]
    pixels = images.tensor[chosen] if isinstance(images, Prepared) else torch.cat(list(images.pixels()))[chosen]
    return Prepared(tensor=pixels, fingerprint=hashlib.sha256(f"{images.fingerprint}\0{chosen}".encode()).hexdigest())
