"""Images as the model wants them: where they lie, how they are read, how they become tensors."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from erq_export.errors import DataError, SpecError
from erq_export.registry import unknown

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
SMALLEST_STD = 1e-6  # of pixels in [0, 1]; float32 would turn much less into infinite values
CROP_MODES = ("center", "squash", "border")
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # modes of 16-bit grey images


class ImageSource(Protocol):
    """Something that holds images; `labels` is None where they are not known."""

    @property
    def labels(self) -> Sequence[int] | None: ...

    def __len__(self) -> int: ...

    def name(self, i: int) -> str: ...

    def image(self, i: int) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Evaluation preprocessing: resize the short side to size/crop_pct, centre crop, scale to [0, 1], normalise."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_config(cls, config: dict[str, Any], overrides: dict[str, Any]) -> "Preprocess":
        """timm's data configuration of a model, each part replaceable. SpecError for a part that does not exist."""
        known = [f.name for f in fields(cls)]
        for name in overrides:
            if name not in known:
                raise unknown("--preprocess part", name, known)
        merged = {name: config[name] for name in known if name in config} | overrides
        channels = merged["input_size"][0]
        for name in ("mean", "std"):
            values = merged[name] if isinstance(merged[name], Sequence) else (merged[name],)
            if len(values) != channels or not all(_number(v) and (name == "mean" or v > SMALLEST_STD) for v in values):
                raise SpecError(
                    f"--preprocess {name}={merged[name]} is not {channels} numbers{' above 0' if name == 'std' else ''}",
                    fix=f"one for each input channel: --preprocess {name}={','.join(['0.5'] * channels)}",
                )
            merged[name] = tuple(float(v) for v in values)
        for name, allowed in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            if merged.get(name, allowed[0]) not in allowed:
                raise unknown(f"--preprocess {name}", str(merged[name]), allowed)
        if not (_number(merged["crop_pct"]) and 0 < merged["crop_pct"] <= 1):
            raise SpecError(f"--preprocess crop_pct={merged['crop_pct']}", fix="a number above 0, at most 1")
        return cls(**merged | {"input_size": tuple(merged["input_size"]), "crop_pct": float(merged["crop_pct"])})

    def tensor(self, image: Image.Image) -> Tensor:
        """One image as float32 (3, H, W)."""
        return _transform(self)(image.convert("L" if self.input_size[0] == 1 else "RGB"))


@functools.lru_cache(maxsize=8)
def _transform(preprocess: Preprocess) -> Callable[[Image.Image], Tensor]:
    """timm's own evaluation transform; made once, not once an image."""
    from timm.data import create_transform

    made: Callable[[Image.Image], Tensor] = create_transform(
        input_size=preprocess.input_size,
        is_training=False,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
    )
    return made


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


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

    def _label(self, class_map: Path | None) -> tuple[int, ...]:
        names = [f.relative_to(self.root).parts for f in self.files]
        if flat := [f for f, parts in zip(self.files, names, strict=True) if len(parts) < 2]:
            raise DataError(f"{flat[0]} lies in no class folder", fix="--val DIR with one folder per class")
        classes = sorted({parts[0] for parts in names})
        index = {c: i for i, c in enumerate(classes)} if class_map is None else read_class_map(class_map)
        if missing := [c for c in classes if c not in index]:
            raise DataError(f"class folder {missing[0]!r} is not in {class_map}", fix="add a line for it")
        return tuple(index[parts[0]] for parts in names)

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
