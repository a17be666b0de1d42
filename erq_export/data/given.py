"""Images as a Python caller has them: a folder, files, a tensor, or any iterable of batches that are prepared already."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.preprocess import Preprocess
from erq_export.data.batches import batches
from erq_export.data.calibration_set import CalibrationSet, calibration_set
from erq_export.data.images import ImageFolder, ImageSource
from erq_export.data.sources import check_enough

Given = str | Path | Sequence[str | Path] | Tensor | Iterable[Any]
MOST_HELD = 2**33  # bytes of prepared images that are held at once: 8 GiB


class Calibration(Protocol):
    """Where calibration images come from."""

    def draw(self, preprocess: Preprocess, *, n: int, seed: int) -> CalibrationSet:
        """n images; DataError where there are fewer, or one cannot be used."""

    def others(self, preprocess: Preprocess, taken: Collection[str], *, n: int) -> Tensor | None:
        """At most n images (≤ n, C, H, W) whose names are not taken, evenly spread over them; None where there is none."""


@dataclass(frozen=True)
class FromSource:
    """Images that are decoded and prepared here, drawn by seed."""

    source: ImageSource

    def draw(self, preprocess: Preprocess, *, n: int, seed: int) -> CalibrationSet:
        return calibration_set(self.source, preprocess, n=n, seed=seed)

    def others(self, preprocess: Preprocess, taken: Collection[str], *, n: int) -> Tensor | None:
        rest = _left({self.source.name(i): i for i in range(len(self.source))}, taken, n)
        return torch.cat(list(batches(self.source, preprocess, rest, len(rest)))) if rest else None

    def check(self, n: int) -> None:
        """DataError where the source has fewer than n images."""
        check_enough(self.source, n)


@dataclass(frozen=True)
class AsGiven:
    """Images (N, C, H, W) float32 that arrived prepared: n of them drawn by seed, all in order where n is N."""

    images: Tensor

    def draw(self, preprocess: Preprocess, *, n: int, seed: int) -> CalibrationSet:
        if len(self.images) < n:
            raise DataError(
                f"{n} calibration images were asked for, the data gave {len(self.images)}",
                fix=f"calib={len(self.images)}, or more data",
            )
        if tuple(self.images.shape[1:]) != preprocess.input_size:
            wanted, given = (" × ".join(map(str, s)) for s in (preprocess.input_size, self.images.shape[1:]))
            raise DataError(f"the images are {given}, the model takes {wanted}", fix="prepare them for this model")
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))[:n]
        chosen = torch.arange(n) if n == len(self.images) else order
        pixels = self.images[chosen].contiguous()
        digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        return CalibrationSet(pixels=pixels, names=tuple(f"given/{i}" for i in chosen.tolist()), sha256=digest)

    def others(self, preprocess: Preprocess, taken: Collection[str], *, n: int) -> Tensor | None:  # noqa: ARG002
        rest = _left({f"given/{i}": i for i in range(len(self.images))}, taken, n)
        return self.images[rest].contiguous() if rest else None


def _left(names: Mapping[str, int], taken: Collection[str], n: int) -> list[int]:
    """At most n positions whose names are not taken, evenly spread."""
    known = set(taken)
    rest = [i for name, i in names.items() if name not in known]
    n = min(n, len(rest))
    return [rest[i * len(rest) // n] for i in range(n)]


def calibration_from(data: Given, *, at_most: int) -> Calibration:
    """What a caller gave to calibrate from; of batches no more than `at_most` images are taken. DataError for none."""
    if isinstance(data, str | Path):
        return FromSource(ImageFolder(Path(data)))
    if isinstance(data, Sequence) and data and all(isinstance(item, str | Path) for item in data):
        return FromSource(ImageFolder.of(Path(str(item)) for item in data))
    return AsGiven(gathered(data, at_most=at_most)[0])


def gathered(data: Tensor | Iterable[Any], *, at_most: int | None = None) -> tuple[Tensor, Tensor | None]:
    """(images (n, C, H, W) float32, labels (n,) int64 or None) of a tensor, or of batches: tensors, or (images, labels).

    DataError for no image, other shapes than the first batch's, what is no tensor, NaN, or more than memory should hold.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    n, held = 0, 0
    for batch, given in _batches(data):
        part = batch if at_most is None else batch[: at_most - n]
        if images and part.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"a batch of images is {_shape(part)}, the first one was {_shape(images[0])}", fix="images of one size"
            )
        if not bool(torch.isfinite(part).all()):
            raise DataError("a batch of images holds NaN or infinity", fix="check the loader's preprocessing")
        if given is not None and len(given) != len(batch):
            raise DataError(f"{len(batch)} images came with {len(given)} labels", fix="one label an image")
        images.append(part)
        labels += [] if given is None else [given[: len(part)].long().reshape(-1)]
        n, held = n + len(part), held + part.numel() * part.element_size()
        if held > MOST_HELD:
            raise DataError(f"the data gave more than {MOST_HELD >> 30} GiB of images", fix="fewer images, or a folder")
        if at_most is not None and n >= at_most:
            break
    if not n:
        raise DataError("the data gave no image", fix="a tensor (n, C, H, W), or an iterable of such batches")
    if labels and sum(map(len, labels)) != n:
        raise DataError("some batches have labels, others have none", fix="labels with every batch, or with none")
    return torch.cat(images), torch.cat(labels) if labels else None


def _batches(data: Tensor | Iterable[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(images, labels or None) of each batch."""
    if isinstance(data, Tensor):
        yield _images(data), None
        return
    if not isinstance(data, Iterable):
        raise DataError(
            f"a {type(data).__name__} is no data", fix="a folder, files, a tensor, or an iterable of batches"
        )
    for item in data:
        pair = isinstance(item, tuple | list) and len(item) == 2
        images, labels = item if pair else (item, None)
        yield _images(images), None if labels is None else torch.as_tensor(labels)


def _images(batch: Any) -> Tensor:
    if not isinstance(batch, Tensor) or batch.ndim != 4 or not batch.is_floating_point():
        what = _shape(batch) if isinstance(batch, Tensor) else type(batch).__name__
        raise DataError(f"a batch is {what}: no images", fix="a float tensor (n, C, H, W), or (images, labels)")
    return batch.detach().float().cpu()


def _shape(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}".removeprefix("torch.")
