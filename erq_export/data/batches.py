"""Images as the model wants them: decoded, prepared, a batch at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from erq_export.contract.errors import DataError, ErqError
from erq_export.contract.inputs import shown
from erq_export.contract.preprocess import Preprocess
from erq_export.data.images import ImageSource

AHEAD = 2  # batches that each worker prepares before they are asked for


def batches(
    source: ImageSource, preprocess: Preprocess, indices: Sequence[int], size: int, *, workers: int = 0
) -> Iterator[Tensor]:
    """The images of `indices` in order, as float32 (≤ size, 3, H, W) at a time.

    workers: processes that decode, each two batches ahead; 0: none, here, when asked. The pixels are the same.
    DataError for an image that cannot be read, or that preprocessing cannot take: it would have to be resized to more pixels
    than an image may have.
    """
    pieces = _Pieces(source, preprocess, [indices[start : start + size] for start in range(0, len(indices), size)])
    workers = min(workers, len(pieces))
    loader = DataLoader(
        pieces,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    for found in loader:
        if isinstance(found, ErqError):
            raise found
        yield found


@dataclass(frozen=True)
class _Pieces(Dataset["Tensor | ErqError"]):
    """A batch a position. A worker's error travels as a value: what a loader raises itself has lost its type."""

    source: ImageSource
    preprocess: Preprocess
    positions: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> "Tensor | ErqError":
        try:
            return torch.stack([_tensor(self.source, self.preprocess, j) for j in self.positions[i]])
        except ErqError as e:
            return e


def _tensor(source: ImageSource, preprocess: Preprocess, i: int) -> Tensor:
    image = source.image(i)
    width, height = preprocess.resized(image.size)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise DataError(
            f"the image {shown(source.name(i))} of {image.width} × {image.height} pixels would be resized to "
            f"{width} × {height} before it is cropped",
            fix="remove it, or crop it by hand; --preprocess crop_mode=squash resizes without keeping the sides' ratio",
        )
    return preprocess.tensor(image)
