"""Pictures with boxes, masks and categories in the layout of COCO: `annotations/instances_SPLIT.json` beside the folder `SPLIT`.

A published detector's class i is the i-th of the categories, sorted by their ids. Pictures without annotations count: what is
found on one of them is wrong. COCO's own val2017 has 48.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from PIL import Image

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import regular_file, shown
from erq_export.contract.memory import require_memory
from erq_export.data.decoding import decoded

BYTES_A_BYTE = 12  # of memory, for one of the file: COCO's train2017 takes 5 GB
MOST_SHOWN = 3
LAYOUT = "a folder with annotations/instances_{0}.json and the pictures in {0}/, as COCO is unpacked"
# fmt: off
COCO_NAMES = (  # its 80 categories, sorted by id: a published detector's classes 1 … 80
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)
# fmt: on
Id = Annotated[int, msgspec.Meta(ge=0)]
Side = Annotated[int, msgspec.Meta(ge=1)]


class Picture(msgspec.Struct, frozen=True):
    """One entry of "images"."""

    id: Id
    file_name: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    height: Side
    width: Side


class Category(msgspec.Struct, frozen=True):
    """One entry of "categories"."""

    id: Id
    name: str


class Runs(msgspec.Struct, frozen=True):
    """A mask as run lengths, column by column, beginning with zeros; compressed where `counts` is a string."""

    size: Annotated[list[Side], msgspec.Meta(min_length=2, max_length=2)]
    counts: str | list[Annotated[int, msgspec.Meta(ge=0)]]


class Annotation(msgspec.Struct, frozen=True):
    """One entry of "annotations": a thing, or where `iscrowd` is 1 a crowd that is not counted."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]  # x, y, width, height
    segmentation: list[list[float]] | Runs  # polygons x₁, y₁, x₂, …, or runs
    area: Annotated[float, msgspec.Meta(ge=0)]
    iscrowd: Literal[0, 1] = 0


class Instances(msgspec.Struct, frozen=True):
    """A whole file. What else COCO writes into it is not read."""

    images: list[Picture]
    annotations: list[Annotation]
    categories: list[Category]


class CocoSplit:
    """The pictures of one split and what is on them, everything checked but the pictures' pixels. Imports no torch."""

    labels = None  # of the pictures as a whole

    def __init__(self, root: Path, split: str = "val2017") -> None:
        self.folder, self.layout = root / split, LAYOUT.format(split)
        self.file = root / "annotations" / f"instances_{split}.json"
        self.instances = self._read(root)
        self.pictures = tuple(sorted(self.instances.images, key=lambda picture: picture.id))
        self.categories = tuple(sorted(self.instances.categories, key=lambda category: category.id))
        self._check_references()
        self._check_files()

    def _read(self, root: Path) -> Instances:
        if not root.is_dir() or not self.folder.is_dir():
            raise DataError(f"there is no folder {shown(self.folder if root.is_dir() else root)}", fix=self.layout)
        found = regular_file(self.file, "file of annotations", fix=self.layout)
        require_memory(
            found.st_size * BYTES_A_BYTE, f"the annotations {shown(self.file)}", fix="a machine with more memory"
        )
        try:
            return msgspec.json.decode(self.file.read_bytes(), type=Instances)
        except (msgspec.MsgspecError, UnicodeDecodeError, OSError, RecursionError) as e:
            raise DataError(
                f"cannot read the annotations {shown(self.file)}: {shown(str(e))}",
                fix=f"a file as COCO's: images, annotations and categories; {self.layout}",
            ) from e

    def _check_references(self) -> None:
        """Ids are unique and lead somewhere; there is something to find."""
        for what in ("images", "annotations", "categories"):
            entries: Sequence[Any] = getattr(self.instances, what)
            if not entries:
                self._refuse(f'its "{what}" are empty', fix="a split with pictures and things on them")
            (most, n), *_ = Counter(entry.id for entry in entries).most_common(1)
            if n > 1:
                self._refuse(f'{n} of its "{what}" have the id {most}', fix="a different id each")
        pictures, categories = {p.id for p in self.pictures}, {c.id for c in self.categories}
        for a in self.instances.annotations:
            if a.image_id not in pictures:
                self._refuse(f"annotation {a.id} is of image {a.image_id}, which is not there", fix="the whole file")
            if a.category_id not in categories:
                self._refuse(
                    f"annotation {a.id} has category {a.category_id}, which is not there", fix="the whole file"
                )
            if a.bbox[2] < 0 or a.bbox[3] < 0:
                self._refuse(f"annotation {a.id} has a box of negative size", fix="bbox: x, y, width, height")

    def _check_files(self) -> None:
        """Every picture listed is in the folder, and nothing leads out of it."""
        (twice, n), *_ = Counter(p.file_name for p in self.pictures).most_common(1)
        if n > 1:
            self._refuse(f"{n} of its images are in the file {shown(twice)}", fix="a different file each")
        if away := [p for p in self.pictures if Path(p.file_name).name != p.file_name]:
            self._refuse(
                f"image {away[0].id} has the file name {shown(away[0].file_name)}", fix="a name without folders"
            )
        try:
            on_disk = {path.name for path in self.folder.iterdir()}
        except OSError as e:
            raise DataError(f"cannot list {shown(self.folder)}: {e.strerror}", fix="a folder that can be read") from e
        if missing := [p.file_name for p in self.pictures if p.file_name not in on_disk]:
            names = ", ".join(shown(name) for name in missing[:MOST_SHOWN])
            more = f" and {len(missing) - MOST_SHOWN} more" if len(missing) > MOST_SHOWN else ""
            raise DataError(
                f"{len(missing)} of {len(self.pictures)} pictures are not in {shown(self.folder)}: {names}{more}",
                fix="unpack the pictures of this split there",
            )

    def _refuse(self, problem: str, *, fix: str) -> None:
        raise DataError(f"the annotations {shown(self.file)}: {problem}", fix=fix)

    def check_categories(self, wanted: Sequence[str]) -> None:
        """DataError unless the categories, sorted by id, have these names: those of the detector's classes in order."""
        names = [category.name for category in self.categories]
        if len(names) != len(wanted):
            self._refuse(
                f"it has {len(names)} categories, the detector tells {len(wanted)} classes apart",
                fix="annotations of the categories that the detector was trained on",
            )
        for category, name in zip(self.categories, wanted, strict=True):
            if category.name != name:
                self._refuse(
                    f"category {category.id} is {shown(category.name)!r} where the detector has {name!r}",
                    fix="annotations of the categories that the detector was trained on, with ids in their order",
                )

    @cached_property
    def annotated(self) -> tuple[int, ...]:
        """Positions of the pictures with a thing that counts: what calibration may choose from."""
        seen = {a.image_id for a in self.instances.annotations if not a.iscrowd}
        return tuple(i for i, picture in enumerate(self.pictures) if picture.id in seen)

    def require_annotated(self, i: int) -> None:
        """DataError where there is nothing on the i-th picture: heads that calibrate on its boxes would see none."""
        if i not in self.annotated:
            raise DataError(
                f"there is nothing annotated on {self.name(i)}", fix="a picture with at least one thing on it"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Of the annotations' bytes, and of the pictures' names, sizes and times of change."""
        seen = hashlib.sha256(self.file.read_bytes())
        for picture in self.pictures:
            found = (self.folder / picture.file_name).stat()
            seen.update(f"{picture.file_name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "replace"))
        return seen.hexdigest()

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, i: int) -> str:
        return shown(self.pictures[i].file_name)

    def id(self, i: int) -> int:
        """The picture's own, which results name."""
        return self.pictures[i].id

    def size(self, i: int) -> tuple[int, int]:
        """Height and width, as the annotations have them."""
        return self.pictures[i].height, self.pictures[i].width

    def image(self, i: int) -> Image.Image:
        """The decoded picture, RGB. DataError where it cannot be read, or has other sides than its annotations say."""
        picture, path = self.pictures[i], self.folder / self.pictures[i].file_name
        image = decoded(path)
        if image.size != (picture.width, picture.height):
            raise DataError(
                f"the picture {shown(path)} has {image.height}×{image.width} pixels, its annotations say "
                f"{picture.height}×{picture.width}",
                fix="the pictures that belong to these annotations",
            )
        return image

    def truth(self, pictures: Sequence[int] | None = None) -> dict[str, Any]:
        """What is on these pictures, by position, all where none is named: as plain values in COCO's form."""
        chosen = self.pictures if pictures is None else tuple(self.pictures[i] for i in pictures)
        ids = {picture.id for picture in chosen}
        kept = [a for a in self.instances.annotations if a.image_id in ids]
        made: dict[str, Any] = msgspec.to_builtins(
            {"images": list(chosen), "annotations": kept, "categories": list(self.categories)}
        )
        return made
