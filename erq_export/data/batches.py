"""Images as the model wants them: decoded, prepared, a batch at a time."""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import shown
from erq_export.contract.preprocess import Preprocess
from erq_export.data.images import ImageSource


def batches(source: ImageSource, preprocess: Preprocess, indices: Sequence[int], size: int) -> Iterator[Tensor]:
    """The images of `indices` in order, as float32 (≤ size, 3, H, W) at a time. DataError for an image that preprocessing
    cannot take: it would have to be resized to more pixels than an image may have."""
    for start in range(0, len(indices), size):
        yield torch.stack([_tensor(source, preprocess, i) for i in indices[start : start + size]])


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
