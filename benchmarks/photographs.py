"""Real photographs out of packages, each in one of three splits: to calibrate on, to choose by, and to be held out.

Which and where is photographs.toml. They are looked for below the root, where Debian and Python have installed them, and
below --photographs DIR, without installing anything:

    apt-get download opencv-doc mate-backgrounds plasma-workspace-wallpapers python3-skimage tuxpaint-stamps-default
    for package in *.deb; do dpkg-deb -x "$package" DIR; done
"""

import hashlib
import random
import site
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import shown
from erq_export.data.decoding import FORMATS, decoded
from erq_export.data.images import image_files

LISTED: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SPLITS = ("calibration", "choosing", "held_out")
SHARES = (44, 44, 52)  # of a folder of one's own, as in the list
SEED = 15
LEAST = 60
DEBIAN_PYTHON = "usr/lib/python3/dist-packages"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the model was trained with
LONGEST = 900  # pixels of the longer side that are kept: no crop needs more
N_TRAIN, N_TEST = 3, 2  # crops of a photograph


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Crops of the photographs of a split. The class of a crop is its photograph."""

    train: Tensor  # (3 m, 3, H, W), the three of a photograph behind each other
    test: Tensor  # (2 m, 3, H, W), the first of every photograph, then the second of every one

    def labels(self, first: int) -> tuple[Tensor, Tensor]:
        """Of `train` and `test`, where this split's classes begin at `first`."""
        own = first + torch.arange(self.n_photographs)
        return own.repeat_interleave(N_TRAIN), own.repeat(N_TEST)

    @property
    def n_photographs(self) -> int:
        return len(self.test) // N_TEST


def found(unpacked: Path | None, folder: Path | None) -> dict[str, list[Path]]:
    """split → photographs: of `folder`, where one is named, else the list's, below `unpacked` or installed."""
    return in_folder(folder) if folder else listed([*([unpacked] if unpacked else []), Path("/")])


def listed(roots: Sequence[Path]) -> dict[str, list[Path]]:
    """split → the list's photographs that are found. DataError for one listed twice, and where too few are found."""
    named = [f"{package}/{name}" for split in SPLITS for package, names in LISTED[split].items() for name in names]
    if twice := [name for name in named if named.count(name) > 1]:
        raise DataError(
            f"photographs.toml lists {twice[0]} twice", fix="a photograph is in one split only: take one out"
        )
    found: dict[str, list[Path]] = {
        split: [
            path
            for package, names in LISTED[split].items()
            for name in names
            if (path := located(package, f"{LISTED['folders'][package]}/{name}", roots)) is not None
        ]
        for split in SPLITS
    }
    return checked(found, fix=f"install or unpack (benchmarks/photographs.py says how) {', '.join(LISTED['folders'])}")


def located(package: str, name: str, roots: Sequence[Path]) -> Path | None:
    """Below a root, below a root's folder of the package's name, or, of a Python package, among this Python's own."""
    places = [place / name for root in roots for place in (root, root / package)]
    if name.startswith(DEBIAN_PYTHON):
        places += [Path(folder) / Path(name).relative_to(DEBIAN_PYTHON) for folder in site.getsitepackages()]
    return next((path for path in places if path.is_file()), None)


def in_folder(root: Path) -> dict[str, list[Path]]:
    """split → photographs below a folder of one's own, shuffled and cut. DataError for too few, or one that is there twice."""
    files = sorted(image_files(root))
    random.Random(SEED).shuffle(files)
    ends = [len(files) * sum(SHARES[:i]) // sum(SHARES) for i in range(len(SHARES) + 1)]
    found = {split: files[ends[i] : ends[i + 1]] for i, split in enumerate(SPLITS)}
    return checked(found, fix="--data DIR with more photographs, or leave --data out")


def checked(found: Mapping[str, list[Path]], *, fix: str) -> dict[str, list[Path]]:
    """The same, where no photograph is in it twice, byte for byte, and enough are there. DataError otherwise."""
    files = [path for paths in found.values() for path in paths]
    if len(files) < LEAST:
        raise DataError(f"{len(files)} photographs were found, at least {LEAST} are needed", fix=fix)
    seen: dict[str, Path] = {}
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in seen:
            raise DataError(
                f"{shown(seen[digest])} and {shown(path)} are the same photograph",
                fix="keep one: no split may know another's",
            )
        seen[digest] = path
    return dict(found)


def photograph(path: Path) -> Image.Image:
    """RGB, the longer side at most 900; what is transparent lies on ImageNet's mean colour. DataError as `decoded` has it."""
    image = decoded(path)
    with Image.open(path, formats=FORMATS) as opened:
        if opened.has_transparency_data:
            colour = tuple(round(255 * mean) for mean in MEAN)
            ground = Image.new("RGBA", opened.size, (*colour, 255))
            ground.alpha_composite(opened.convert("RGBA"))
            image = ground.convert("RGB")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
    return image


def centres(files: Sequence[Path], size: int) -> Tensor:
    """(n, 3, size, size): the shorter side at 8/7 of the size, its centre cut out, as models are evaluated."""
    return torch.stack([centre(photograph(path), size) for path in files])


def centre(image: Image.Image, size: int) -> Tensor:
    scale = size * 8 / 7 / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    larger = image.resize((width, height), Image.Resampling.BICUBIC)
    return _normalised(larger.crop((left, top, left + size, top + size)))


def crops(files: Sequence[Path], size: int) -> Crops:
    """Random crops; each photograph has a generator of its own, so that no other one decides them."""
    drawn = [list(_crops(photograph(path), size, random.Random(f"{SEED} {path.name}"))) for path in files]
    test = [crop for k in range(N_TRAIN, N_TRAIN + N_TEST) for crop in (found[k] for found in drawn)]
    return Crops(train=torch.stack([crop for found in drawn for crop in found[:N_TRAIN]]), test=torch.stack(test))


def _crops(image: Image.Image, size: int, rng: random.Random) -> Iterator[Tensor]:
    """Squares of 35 to 90 % of the image's area, as far as they fit into it, half of them mirrored."""
    width, height = image.size
    for _ in range(N_TRAIN + N_TEST):
        side = min(round((rng.uniform(0.35, 0.9) * width * height) ** 0.5), width, height)
        left, top = rng.randint(0, width - side), rng.randint(0, height - side)
        square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield _normalised(square)


def _normalised(image: Image.Image) -> Tensor:
    mean, std = (torch.tensor(channels)[:, None, None] for channels in (MEAN, STD))
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
