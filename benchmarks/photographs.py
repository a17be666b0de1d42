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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import shown
from erq_export.contract.preprocess import Preprocess
from erq_export.data.decoding import FORMATS, decoded
from erq_export.data.images import image_files

LISTED: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SPLITS = ("calibration", "choosing", "held_out")
SHARES = (44, 44, 51)  # of a folder of one's own, as in the list
SEED = 15
LEAST = 60
DEBIAN_PYTHON = "usr/lib/python3/dist-packages"
GROUND = (124, 116, 104, 255)  # below what is transparent: ImageNet's mean colour
LONGEST = 900  # pixels of the longer side that are kept: no crop needs more


def found(unpacked: Path | None, folder: Path | None) -> dict[str, list[Path]]:
    """split → photographs: of `folder`, where one is named, else the list's, below `unpacked` or installed.

    DataError for too few of them, and for one that is there twice, by name or byte for byte.
    """
    if folder is not None:
        return checked(in_folder(folder), fix="--data DIR with more photographs, or leave --data out")
    packages = ", ".join(LISTED["folders"])
    return checked(
        listed([*([unpacked] if unpacked else []), Path("/")]),
        fix=f"install {packages}, or unpack them and --photographs DIR (benchmarks/photographs.py says how)",
    )


def listed(roots: Sequence[Path]) -> dict[str, list[Path]]:
    """The list's photographs that are found."""
    named = [f"{package}/{name}" for split in SPLITS for package, names in LISTED[split].items() for name in names]
    if twice := [name for name in named if named.count(name) > 1]:
        raise DataError(f"photographs.toml lists {twice[0]} twice", fix="take one out: a photograph is in one split")
    return {
        split: [path for package, names in LISTED[split].items() for path in located(package, names, roots)]
        for split in SPLITS
    }


def located(package: str, names: Sequence[str], roots: Sequence[Path]) -> Iterator[Path]:
    """Below a root, below a root's folder of the package's name, or, of a Python package, among this Python's own."""
    folder = Path(LISTED["folders"][package])
    places = [place / folder for root in roots for place in (root, root / package)]
    if folder.is_relative_to(DEBIAN_PYTHON):
        places += [Path(own) / folder.relative_to(DEBIAN_PYTHON) for own in site.getsitepackages()]
    for name in names:
        yield from [path for place in places if (path := place / name).is_file()][:1]


def in_folder(root: Path) -> dict[str, list[Path]]:
    """Photographs below a folder of one's own, shuffled and cut."""
    files = sorted(image_files(root))
    random.Random(SEED).shuffle(files)
    ends = [len(files) * sum(SHARES[:i]) // sum(SHARES) for i in range(len(SHARES) + 1)]
    return {split: files[ends[i] : ends[i + 1]] for i, split in enumerate(SPLITS)}


def checked(splits: dict[str, list[Path]], *, fix: str) -> dict[str, list[Path]]:
    """The same, where they are enough and differ."""
    files = [path for paths in splits.values() for path in paths]
    if len(files) < LEAST:
        raise DataError(f"{len(files)} photographs were found, at least {LEAST} are needed", fix=fix)
    seen: dict[str, Path] = {}
    for path in files:
        first = seen.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        if first is not path:
            raise DataError(f"{shown(first)} and {shown(path)} are one photograph", fix="keep one: splits stay apart")
    return splits


def photograph(path: Path) -> Image.Image:
    """RGB, the longer side at most 900. DataError as `decoded` has it."""
    image = decoded(path)
    with Image.open(path, formats=FORMATS) as opened:
        if opened.has_transparency_data:
            ground = Image.new("RGBA", opened.size, GROUND)
            ground.alpha_composite(opened.convert("RGBA"))
            image = ground.convert("RGB")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
    return image


def whole(files: Sequence[Path], preprocess: Preprocess) -> Tensor:
    """(m, 3, H, W), each as the model's own preprocessing has it."""
    return torch.stack([preprocess.tensor(photograph(path)) for path in files])


def crops(files: Sequence[Path], preprocess: Preprocess, n: int) -> Tensor:
    """(m, n, 3, H, W): n random crops of each. A photograph has a generator of its own: no other one decides its crops."""
    return torch.stack(
        [
            torch.stack([preprocess.tensor(crop) for crop in drawn(photograph(path), n, random.Random(path.name))])
            for path in files
        ]
    )


def drawn(image: Image.Image, n: int, rng: random.Random) -> Iterator[Image.Image]:
    """Squares of 10 to 40 % of the image's area, as far as they fit into it, half of them mirrored."""
    width, height = image.size
    for _ in range(n):
        side = min(round((rng.uniform(0.1, 0.4) * width * height) ** 0.5), width, height)
        left, top = rng.randint(0, width - side), rng.randint(0, height - side)
        square = image.crop((left, top, left + side, top + side))
        yield square if rng.random() < 0.5 else square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
