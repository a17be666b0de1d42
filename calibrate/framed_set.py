"""The calibration set of a detector: pictures that lie on one canvas."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from erq_export.contract.bundle import DataFingerprint
from erq_export.contract.errors import DataError
from erq_export.contract.state import State
from erq_export.data.images import ImageSource
from erq_export.data.sources import check_enough
from erq_export.models.detectors.framing import Framed, Framing


@dataclass(frozen=True, kw_only=True)
class FramedSet:
    """Pictures of several sizes, each on the same canvas. DataError for none, and for canvases of several sizes."""

    framed: tuple[Framed, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.framed:
            raise DataError("the calibration set holds no image", fix="at least 1; the paper uses 1 for detectors")
        canvases = sorted({tuple(one.pixels.shape[2:]) for one in self.framed})
        if len(canvases) > 1:
            raise DataError(
                f"the calibration images lie on canvases of {' and '.join('×'.join(map(str, c)) for c in canvases)} pixels",
                fix="images of one canvas: engines are built for one",
            )

    @property
    def fingerprint(self) -> DataFingerprint:
        seen = hashlib.sha256()
        for one in self.framed:
            seen.update(f"{one.size} {one.given}".encode())
            seen.update(one.pixels.numpy().tobytes())
        return DataFingerprint(n_images=len(self.names), names=self.names, pixels_sha256=seen.hexdigest())

    def chunks(self, size: int) -> Sequence[State]:  # noqa: ARG002 - boxes are of no fixed number, so one by one
        """The state in front of a detector's first stage, image by image."""
        return [{"pixels": one.pixels, "size": torch.tensor(one.size)} for one in self.framed]


def framed_set(source: ImageSource, framing: Framing, *, n: int, seed: int) -> FramedSet:
    """n pictures drawn without replacement, in drawn order: the first that fits, and those that lie on a canvas like its own.

    Upright pictures are passed over where the canvas lies, and the other way round. DataError for too few, or a file that
    cannot be read.
    """
    check_enough(source, n)
    framed, names = list[Framed](), list[str]()
    for i in torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(framed) == n:
            break
        picture = torch.from_numpy(np.asarray(source.image(i).convert("RGB")).copy()).permute(2, 0, 1)
        if not framing.fits((picture.shape[1], picture.shape[2])):
            continue
        one = framing(picture)
        if not framed or one.pixels.shape == framed[0].pixels.shape:
            framed.append(one)
            names.append(source.name(i))
    if len(framed) < n:
        raise DataError(
            f"only {len(framed)} of {len(source)} pictures lie on one canvas, {n} were asked for",
            fix="fewer: --calib N; or another canvas",
        )
    return FramedSet(framed=tuple(framed), names=tuple(names))
