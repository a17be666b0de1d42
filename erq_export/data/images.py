"""Where images lie and how they are read. Imports no torch, so that a folder without images is refused at once."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NoReturn, Protocol

from PIL import Image

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import encodable, regular_file, shown
from erq_export.data.class_map import read_class_map
from erq_export.data.decoding import decoded
from erq_export.data.devkit import read_devkit

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageSource(Protocol):
    """Something that holds images; `labels` is None where they are not known."""

    @property
    def labels(self) -> Sequence[int] | None: ...

    @property
    def fingerprint(self) -> str:
        """What tells these images from others; the same as long as no file changes."""
        ...

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

    @classmethod
    def of(cls, files: Iterable[Path]) -> "ImageFolder":
        """These files, in the order given. DataError for one that is not there."""
        made = cls.__new__(cls)
        made.files, made.labels = [file.absolute() for file in files], None
        for file in made.files:
            if not file.is_file():
                raise DataError(f"there is no image {file}", fix="name files that are there")
        made.root = Path(made.files[0].anchor)
        return made

    def _label(self, class_map: Path | None) -> tuple[int, ...]:
        if class_map is not None and class_map.is_dir():
            return self._by_devkit(class_map)
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

    def _by_devkit(self, folder: Path) -> tuple[int, ...]:
        kit = read_devkit(folder)
        labels = [kit.label(file.relative_to(self.root)) for file in self.files]
        for file, label in zip(self.files, labels, strict=True):
            if label is None:
                raise DataError(
                    f"{shown(file)} is in no folder of a synset of {shown(folder)}, and has no validation image's number",
                    fix="ImageNet's validation images as they were unpacked, or in folders by synset",
                )
        return tuple(label for label in labels if label is not None)

    @cached_property
    def fingerprint(self) -> str:
        """Names, sizes and times of change of all files: content would mean reading a data set before it is used."""
        seen = hashlib.sha256()
        for i, file in enumerate(self.files):
            found = file.stat()
            seen.update(f"{self.name(i)}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return seen.hexdigest()

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
