"""The `demo` model: a small vision transformer that reads handwritten digits, with the images it was trained on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from erq_export.contract.errors import DataError, MachineError

if TYPE_CHECKING:
    from PIL import Image


N_HELD_OUT = 597  # of 1797, one third; the other 1200 trained the shipped weights
SPLIT_SEED = 0  # part of the weights' meaning: another split would test on training images


class Digits:
    """One side of a fixed, stratified split of scikit-learn's 1797 handwritten digits.

    Source: UCI "Optical Recognition of Handwritten Digits" (test set), 8 × 8 pixels of ink counts 0..16; here
    uint8, 255/16 grey levels per count, the grey repeated in the three channels. `labels[i]` is the digit drawn
    in `image(i)`, and `name(i)` gives its position in `sklearn.datasets.load_digits`.
    """

    class_names: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

    def __init__(self, split: Literal["train", "held_out"]) -> None:
        if split not in ("train", "held_out"):
            raise DataError(f"the digits have no split {split!r}", fix="'train' or 'held_out'")
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise MachineError(
                "the demo's digits come with scikit-learn, which is not installed", fix="pip install 'erq-export[demo]'"
            ) from error
        counts, digits = load_digits(return_X_y=True)  # (1797, 64) ink counts, (1797,) digits
        train, held_out = train_test_split(
            range(len(digits)), test_size=N_HELD_OUT, stratify=digits, random_state=SPLIT_SEED
        )
        self._positions: list[int] = sorted(train if split == "train" else held_out)
        self._pixels = (counts[self._positions] * 255 / 16).round().astype("uint8").reshape(-1, 8, 8)  # (n, 8, 8)
        self.labels: tuple[int, ...] = tuple(digits[self._positions].tolist())

    @property
    def fingerprint(self) -> str:
        """Which digits, in which order."""
        return hashlib.sha256(f"digits {self._positions}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._positions)

    def image(self, i: int) -> Image.Image:
        """Return image i at its native 8 × 8 pixels, mode RGB."""
        from PIL import Image

        return Image.fromarray(self._pixels[i]).convert("RGB")

    def name(self, i: int) -> str:
        """Return a name that stays the same whichever split or order it is seen in, such as `digits/0123`."""
        return f"digits/{self._positions[i]:04d}"
