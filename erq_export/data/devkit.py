"""ImageNet's development kit: which of a model's outputs every class, and every numbered validation image, belongs to.

Its own class numbers have another order than the models' outputs, which follow the sorted names of the synsets; validation
images lie in one folder, and a text file has the class number of each, by line.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import regular_file, shown

META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
LARGEST_FILE = 2**24  # bytes; the originals have 0.4 and 0.2 MB
NUMBERED = re.compile(r".*_([0-9]{8})")  # ILSVRC2012_val_00000001
FIX = "the unpacked ILSVRC2012_devkit_t12, or a text file with a line FOLDER INDEX for each class folder"


@dataclass(frozen=True, kw_only=True)
class Devkit:
    """by_synset: n01440764 → output;  by_image: the output of validation image 1, 2, …"""

    by_synset: dict[str, int]
    by_image: tuple[int, ...]

    def label(self, path: Path) -> int | None:
        """Of an image below a folder of its synset, or of one with a validation image's number; None for another."""
        if len(path.parts) > 1:
            return self.by_synset.get(path.parts[0])
        match = NUMBERED.fullmatch(path.stem)
        number = int(match[1]) if match else 0
        return self.by_image[number - 1] if 1 <= number <= len(self.by_image) else None


def read_devkit(folder: Path) -> Devkit:
    """The folder ILSVRC2012_devkit_t12 as it is unpacked. DataError where a file is missing or no such file."""
    leaves = dict(_leaves(folder / META))  # class number → synset
    order = {synset: i for i, synset in enumerate(sorted(leaves.values()))}
    if len(order) != len(leaves):
        raise DataError(f"{shown(folder / META)} names a synset twice", fix=FIX)
    truth = _checked(folder / TRUTH)
    try:
        numbers = [int(line) for line in truth.read_text(encoding="ascii").split()]
        by_image = tuple(order[leaves[number]] for number in numbers)
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"{shown(truth)} is no list of the kit's class numbers: {shown(str(e))}", fix=FIX) from e
    return Devkit(by_synset=order, by_image=by_image)


def _leaves(path: Path) -> list[tuple[int, str]]:
    """(class number, synset) of every class that has no class below it."""
    from scipy.io import loadmat

    _checked(path)
    try:
        rows: Any = loadmat(path, squeeze_me=True)["synsets"]
        found = [
            (int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in rows.reshape(-1) if int(row["num_children"]) == 0
        ]
    except Exception as e:  # a damaged .mat raises whatever its parser meets
        raise DataError(f"cannot read the synsets of {shown(path)}: {type(e).__name__}", fix=FIX) from e
    if len({number for number, _ in found}) != len(found) or not found:
        raise DataError(f"{shown(path)} has no classes, or gives two of them one number", fix=FIX)
    return found


def _checked(path: Path) -> Path:
    if regular_file(path, "--class-map", fix=FIX).st_size > LARGEST_FILE:
        raise DataError(f"{shown(path)} is larger than such a file is", fix=FIX)
    return path
