"""Where a detector's pictures come from: a folder, one in COCO's layout, or the scenes that come with the stand-ins. No torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from erq_export.contract.errors import SpecError
from erq_export.contract.spec import DataSpec
from erq_export.data.coco import CocoSplit
from erq_export.data.images import ImageFolder, ImageSource
from erq_export.data.scenes import Scenes
from erq_export.flow.detection.asked import OWN

CALIBRATED_ON, MEASURED_ON = 1, 2  # seeds of scenes; the stand-ins were trained on those of seed 0
N_CALIBRATE, N_MEASURE = 64, 300
MOST_MEASURED = 10_000  # each is drawn, and its detections are held
FEW = 20  # pictures on which detections are compared one by one
TRAIN = "train2017"


class Truth(ImageSource, Protocol):
    """Pictures, and what is on them."""

    def id(self, i: int) -> int:
        """Of the i-th picture, as results name it."""
        ...

    def size(self, i: int) -> tuple[int, int]:
        """Height and width."""
        ...

    def truth(self, pictures: Sequence[int] | None = None) -> dict[str, Any]:
        """Of these positions, of all where none is named: images, annotations and categories in COCO's form."""
        ...


def calibration_pictures(name: str, data: DataSpec) -> ImageSource:
    """--data, else train2017 of --coco, else the scenes of a stand-in. SpecError where nothing was named."""
    if data.data is not None:
        return ImageFolder(Path(data.data))
    if data.coco is not None and (train := Path(data.coco) / TRAIN).is_dir():
        return ImageFolder(train)
    if name in OWN and data.coco is None:
        return Scenes(N_CALIBRATE, seed=CALIBRATED_ON)
    where = "" if data.coco is None else f": {data.coco} has no {TRAIN}"
    raise SpecError(f"no pictures to calibrate from were named{where}", fix="--data DIR, a folder of pictures")


def measured_pictures(name: str, data: DataSpec) -> Truth | None:
    """val2017 of --coco, or held-out scenes for a stand-in, 300 and as many more as are asked for. DataError where a folder has
    another layout, SpecError for more scenes than can be held."""
    if data.coco is not None:
        return CocoSplit(Path(data.coco))
    if name in OWN and data.val_images > MOST_MEASURED:
        raise SpecError(f"--val-images {data.val_images} drawn scenes", fix=f"at most {MOST_MEASURED}")
    return Scenes(max(N_MEASURE, data.val_images), seed=MEASURED_ON) if name in OWN else None


def spread(n: int, limit: int) -> list[int]:
    """At most `limit` of n positions (0: all), evenly spread."""
    m = min(limit or n, n)
    return [i * n // m for i in range(m)]
