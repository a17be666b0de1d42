"""The calibration set: which images, as one tensor, and what identifies them."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from erq_export.contract.bundle import DataFingerprint
from erq_export.contract.errors import DataError
from erq_export.contract.memory import require_memory
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.state import State
from erq_export.data.batches import batches
from erq_export.data.images import ImageSource
from erq_export.data.sources import check_enough


class CalibrationData(Protocol):
    """Images to calibrate on."""

    @property
    def fingerprint(self) -> DataFingerprint: ...

    def chunks(self, size: int) -> Sequence[State]:
        """Up to `size` images together, where they can be, on the CPU."""
        ...


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """pixels (n, 3, H, W) float32, preprocessed; the names and the sha256 of the pixels identify the set.

    DataError for no image, and for pixels that are not finite.
    """

    pixels: Tensor
    names: tuple[str, ...]
    sha256: str

    def __post_init__(self) -> None:
        if not len(self.pixels):
            raise DataError("the calibration set holds no image", fix="at least 1; the paper uses 32")
        if not bool(torch.isfinite(self.pixels).all()):
            raise DataError("the preprocessed calibration images hold NaN or infinity", fix="check --preprocess std")

    def chunks(self, size: int) -> list[Tensor]:
        """`size` images at a time, the last ones fewer: (≤ size, 3, H, W) each."""
        return list(self.pixels.split(size))

    @property
    def fingerprint(self) -> DataFingerprint:
        """What identifies the set in a bundle."""
        return DataFingerprint(n_images=len(self.names), names=self.names, pixels_sha256=self.sha256)


def calibration_set(source: ImageSource, preprocess: Preprocess, *, n: int, seed: int) -> CalibrationSet:
    """n images drawn without replacement by a generator of their own; in drawn order, without labels.

    DataError for too few images, a file that cannot be read, or pixels that are not finite; MachineError where so many
    images do not fit into memory.
    """
    check_enough(source, n)
    pixels_bytes = n * math.prod(preprocess.input_size) * torch.float32.itemsize
    require_memory(
        2 * pixels_bytes,  # one by one, then side by side
        f"{n} calibration images of {' × '.join(map(str, preprocess.input_size))} numbers",
        fix="fewer: --calib N",
    )
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    pixels = torch.cat(list(batches(source, preprocess, chosen, size=n)))
    return CalibrationSet(
        pixels=pixels,
        names=tuple(source.name(i) for i in chosen),
        sha256=hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
    )
