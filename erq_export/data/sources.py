"""Where the images of a run come from: the user's folders, or the digits that come with the demo model."""

from pathlib import Path

from erq_export.contract.errors import DataError, SpecError
from erq_export.contract.spec import DataSpec
from erq_export.data.digits import Digits
from erq_export.data.images import ImageFolder, ImageSource, image_files


def calibration_source(model: str, spec: DataSpec) -> ImageSource:
    """Images to calibrate from. SpecError where none were named; DataError where the folder has none."""
    if spec.data is not None:
        return ImageFolder(Path(spec.data))
    if model == "demo":
        return Digits("train")
    raise SpecError(
        "no calibration images were named", fix="--data DIR, a folder of images like those the model will see"
    )


def validation_source(model: str, spec: DataSpec, *, headless: bool = False) -> ImageSource | None:
    """Images to measure on, or None. Those of class folders have labels; those that lie in --val itself have none, nor has
    any where the model has no classes (`headless`)."""
    if spec.val is not None:
        class_map = None if spec.class_map is None else Path(spec.class_map)
        if headless or (class_map is None and is_flat(Path(spec.val))):
            return ImageFolder(Path(spec.val))
        return ImageFolder(Path(spec.val), labelled=True, class_map=class_map)
    if spec.class_map is not None:
        raise SpecError("--class-map without --val", fix="--val DIR with one folder per class")
    return Digits("held_out") if model == "demo" else None


def is_flat(folder: Path) -> bool:
    """Do all images of a folder lie in it, none below? DataError as of `ImageFolder`."""
    return all(file.parent == folder for file in image_files(folder))


def check_enough(source: ImageSource, n: int) -> None:
    """DataError when the source has fewer than n images."""
    if len(source) < n:
        raise DataError(
            f"--calib {n} images were asked for, the data folder has {len(source)}",
            fix=f"--calib {len(source)}, or a larger folder for --data",
        )


BY_CLASS_MAP = "--class-map FILE with a line FOLDER INDEX for each folder"


def check_class_folders(source: ImageSource, n_classes: int, *, what: str = "--val", fix: str = BY_CLASS_MAP) -> None:
    """The sorted order of class folders gives a model's class indices only where every class has one. DataError otherwise."""
    folders = {Path(source.name(i)).parts[0] for i in range(len(source))}
    if len(folders) != n_classes:
        raise DataError(
            f"{what} has {len(folders)} class folders, the model has {n_classes} classes: sorted order would give wrong labels",
            fix=fix,
        )
