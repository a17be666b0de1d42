"""Images as the model wants them: where they lie, how they are read, how they become tensors."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.preprocess import Preprocess

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # modes of 16-bit grey images


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
        if not root.is_dir():
            raise DataError(f"there is no folder {root}", fix="name a folder of images")
        self.files = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if not self.files:
            raise DataError(f"no image below {root}", fix=f"a folder with files ending in {', '.join(EXTENSIONS)}")
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
        names = [f.relative_to(self.root).parts for f in self.files]
        if flat := [f for f, parts in zip(self.files, names, strict=True) if len(parts) < 2]:
            raise DataError(f"{flat[0]} lies in no class folder", fix="--val DIR with one folder per class")
        classes = sorted({parts[0] for parts in names})
        index = {c: i for i, c in enumerate(classes)} if class_map is None else read_class_map(class_map)
        if missing := [c for c in classes if c not in index]:
            raise DataError(f"class folder {missing[0]!r} is not in {class_map}", fix="add a line for it")
        return tuple(index[parts[0]] for parts in names)

    @cached_property
    def fingerprint(self) -> str:
        """Names, sizes and times of change of all files: content would mean reading a data set before it is used."""
        seen = hashlib.sha256()
        for i, file in enumerate(self.files):
            stat = file.stat()
            seen.update(f"{self.name(i)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return seen.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return self.files[i].relative_to(self.root).as_posix()

    def image(self, i: int) -> Image.Image:
        """The decoded image, RGB. DataError where the file cannot be read."""
        try:
            with Image.open(self.files[i]) as opened:
                # PIL would clip 16 bits to 255, not scale them
                deep = opened.mode in DEEP
                image = opened.point(lambda grey: grey * (1 / 257)).convert("L") if deep else opened
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
            raise DataError(f"cannot read the image {self.files[i]}: {e}", fix="repair or remove that file") from e


def read_class_map(path: Path) -> dict[str, int]:
    """One class folder a line; its class index is the line number from 0, or a second column."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read --class-map {path}: {e}", fix="a text file, one class folder a line") from e
    index: dict[str, int] = {}
    for row, line in enumerate(line.split() for line in lines if line.strip()):
        if len(line) > 2 or (len(line) == 2 and not line[1].isdigit()):
            raise DataError(f"--class-map {path}: line {row + 1} is {' '.join(line)!r}", fix="FOLDER or FOLDER INDEX")
        index[line[0]] = int(line[1]) if len(line) == 2 else row
    return index


def batches(source: ImageSource, preprocess: Preprocess, indices: Sequence[int], size: int) -> Iterator[Tensor]:
    """The images of `indices` in order, as float32 (≤ size, 3, H, W) at a time."""
    for start in range(0, len(indices), size):
        yield torch.stack([preprocess.tensor(source.image(i)) for i in indices[start : start + size]])
