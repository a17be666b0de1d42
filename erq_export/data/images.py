"""Images as the model wants them: where they lie, how they are read, how they become tensors."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from PIL import Image
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import encodable, regular_file, shown
from erq_export.contract.preprocess import Preprocess
from erq_export.data.class_map import read_class_map
from erq_export.data.decoding import decoded

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageSource(Protocol):
    """Something that holds images; `labels` is None where they are not known."""

    @property
    def labels(self) -> Sequence[int] | None: ...

    def __len__(self) -> int: ...

    def name(self, i: int) -> str: ...

    def image(self, i: int) -> Image.Image: ...


class ImageFolder:
    """Every image below a folder, sorted by path; with `labelled`, the class is the first folder below the root."""

    def __init__(self, root: Path, *, labelled: bool = False, class_map: Path | None = None) -> None:
        self.root = root
        self.files = sorted(image_files(root))
        if not self.files:
            raise DataError(
                f"no image below {shown(root)}", fix=f"a folder with files ending in {', '.join(EXTENSIONS)}"
            )
        self.labels: tuple[int, ...] | None = self._label(class_map) if labelled else None

    def _label(self, class_map: Path | None) -> tuple[int, ...]:
        names = [f.relative_to(self.root).parts for f in self.files]
        if flat := [f for f, parts in zip(self.files, names, strict=True) if len(parts) < 2]:
            raise DataError(f"{shown(flat[0])} lies in no class folder", fix="--val DIR with one folder per class")
        classes = sorted({parts[0] for parts in names})
        index = {c: i for i, c in enumerate(classes)} if class_map is None else read_class_map(class_map)
        if missing := [c for c in classes if c not in index]:
            raise DataError(
                f"class folder {shown(missing[0])!r} is not in {shown(str(class_map))}", fix="add a line for it"
            )
        return tuple(index[parts[0]] for parts in names)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        """The path below the root, with /; what of it is not UTF-8 is written as \\xff."""
        return encodable(self.files[i].relative_to(self.root).as_posix())

    def image(self, i: int) -> Image.Image:
        """The decoded image, RGB. DataError where the file cannot be read."""
        return decoded(self.files[i])


def image_files(root: Path) -> Iterator[Path]:
    """Every file below a folder whose name ends as an image's does; links to files count, linked folders are not entered.

    DataError for a folder that cannot be listed, and for such a name on a broken link, a pipe, a socket or a device.
    """
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise DataError(f"there is no folder {shown(root)}: {reason}", fix="name a folder of images") from e
    if not is_folder:
        raise DataError(f"there is no folder {shown(root)}: it is a file", fix="name a folder of images")
    for folder, _, files in os.walk(root, onerror=_cannot_list):  # linked folders are listed in the middle, not entered
        for path in (Path(folder, name) for name in files if Path(name).suffix.lower() in EXTENSIONS):
            regular_file(path, "image", fix="repair or remove it")
            yield path


def _cannot_list(error: OSError) -> NoReturn:
    raise DataError(
        f"cannot list the folder {shown(str(error.filename))}: {error.strerror}", fix="a folder that can be read whole"
    ) from error


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
