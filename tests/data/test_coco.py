"""A folder of COCO's is read as it is; one of another layout is refused with the file, the entry and what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_folder import SPLIT, coco_folder, instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import damaged
from PIL import Image

from erq_export.contract.errors import DataError
from erq_export.data.coco import CocoSplit

Change = Callable[[dict[str, Any]], Any]


def test_pictures_and_categories_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    split = CocoSplit(coco_folder(tmp_path))
    assert (len(split), split.name(0), split.name(1)) == (2, "000000000003.png", "000000000007.png")
    assert [c.name for c in split.categories] == ["person", "toothbrush"]
    assert split.image(1).size == (30, 20)
    assert split.image(1).getpixel((0, 0)) == (9, 99, 199)
    split.check_categories(("person", "toothbrush"))


def test_what_is_on_the_pictures_is_told_in_cocos_own_form(tmp_path: Path) -> None:
    """Less what nobody reads, and in plain lists."""
    split, given = CocoSplit(coco_folder(tmp_path)), instances()
    truth = json.loads(json.dumps(split.truth()))
    assert truth["annotations"] == given["annotations"]
    assert truth["images"] == [{k: p[k] for k in ("id", "file_name", "height", "width")} for p in given["images"][::-1]]
    assert split.truth([0]) == split.truth() | {"annotations": [], "images": split.truth()["images"][:1]}
    assert all(isinstance(a["bbox"], list) for a in split.truth()["annotations"])


def test_an_empty_picture_is_measured_and_not_calibrated_on(tmp_path: Path) -> None:
    """val2017 has 48. A crowd alone is nothing, either."""
    content = instances()
    content["annotations"][0]["image_id"] = 3
    for folder, file, empty in (("a", None, 0), ("b", content, 1)):
        split = CocoSplit(coco_folder(tmp_path / folder, file))
        assert split.annotated == (1 - empty,)
        split.require_annotated(1 - empty)
        with pytest.raises(DataError, match=f"nothing annotated on 00000000000{(3, 7)[empty]}.png"):
            split.require_annotated(empty)


def test_the_fingerprint_is_that_of_annotations_and_files(tmp_path: Path) -> None:
    root = coco_folder(tmp_path)
    seen = {CocoSplit(root).fingerprint, CocoSplit(root).fingerprint}
    assert len(seen) == 1
    Image.new("RGB", (16, 10)).save(root / SPLIT / "000000000003.png", compress_level=0)
    seen.add(CocoSplit(root).fingerprint)
    changed = instances()
    changed["annotations"][0]["area"] = 83
    (root / "annotations" / f"instances_{SPLIT}.json").write_text(json.dumps(changed))
    seen.add(CocoSplit(root).fingerprint)
    assert len(seen) == 3


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda root: root.rename(root.with_name("elsewhere")), "there is no folder .*coco"),
    "no split": (lambda root: (root / SPLIT).rename(root / "val2014"), "there is no folder .*val2017"),
    "no annotations": (
        lambda root: (root / "annotations" / f"instances_{SPLIT}.json").unlink(),
        "no file of annotations",
    ),
    "a picture less": (
        lambda root: (root / SPLIT / "000000000003.png").unlink(),
        r"1 of 2 pictures are not in .*val2017: 000000000003\.png",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_another_layout_is_refused(tmp_path: Path, kind: str) -> None:
    root = coco_folder(tmp_path / "coco")
    change, says = FILES[kind]
    change(root)
    with pytest.raises(DataError, match=says) as caught:
        CocoSplit(root)
    assert "unpack" in caught.value.fix


CONTENTS: dict[str, tuple[Change, str]] = {
    "captions": (
        lambda c: [a.pop("category_id") for a in c["annotations"]],
        r"missing required field `category_id`.*annotations\[0",
    ),
    "keypoints": (lambda c: [a.pop("bbox") for a in c["annotations"]], "missing required field `bbox`"),
    "no categories": (lambda c: c.pop("categories"), "missing required field `categories`"),
    "empty categories": (lambda c: c["categories"].clear(), 'its "categories" are empty'),
    "empty images": (lambda c: c["images"].clear(), 'its "images" are empty'),
    "empty annotations": (lambda c: c["annotations"].clear(), 'its "annotations" are empty'),
    "no height": (lambda c: c["images"][1].update(height=0), r"`int` >= 1.*images\[1\]\.height"),
    "a box of three": (lambda c: c["annotations"][1].update(bbox=[0, 0, 1]), r"length.* 4.*annotations\[1\]\.bbox"),
    "a negative box": (
        lambda c: c["annotations"][0].update(bbox=[5, 5, -1, 2]),
        "annotation 1 has a box of negative size",
    ),
    "a negative area": (lambda c: c["annotations"][0].update(area=-1), r">= 0.*annotations\[0\]\.area"),
    "words for masks": (
        lambda c: c["annotations"][0].update(segmentation="polygon"),
        r"annotations\[0\]\.segmentation",
    ),
    "half a crowd": (lambda c: c["annotations"][0].update(iscrowd=2), r"annotations\[0\]\.iscrowd"),
    "an image twice": (lambda c: c["images"][0].update(id=3), '2 of its "images" have the id 3'),
    "a thing twice": (lambda c: c["annotations"][0].update(id=2), '2 of its "annotations" have the id 2'),
    "a category twice": (lambda c: c["categories"][0].update(id=1), '2 of its "categories" have the id 1'),
    "a file twice": (
        lambda c: c["images"][0].update(file_name="000000000003.png"),
        "2 of its images are in the file 0000",
    ),
    "nowhere": (lambda c: c["annotations"][0].update(image_id=4), "annotation 1 is of image 4, which is not there"),
    "of no kind": (
        lambda c: c["annotations"][0].update(category_id=4),
        "annotation 1 has category 4, which is not there",
    ),
    "outside": (
        lambda c: c["images"][0].update(file_name="../../secret.png"),
        r"image 7 has the file name \.\./\.\./secret",
    ),
    "absolute": (lambda c: c["images"][0].update(file_name="/etc/passwd"), "image 7 has the file name /etc/passwd"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_annotations_of_another_kind_are_refused(tmp_path: Path, kind: str) -> None:
    content = instances()
    change, says = CONTENTS[kind]
    change(content)
    with pytest.raises(DataError, match=says):
        CocoSplit(coco_folder(tmp_path, content))


@pytest.mark.parametrize("data", [b"", b"[]", b"\x80\x04.", b'{"images": NaN}', b"[" * 10**6], ids=lambda d: str(d[:8]))
def test_what_is_no_json_of_instances_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="cannot read the annotations"):
        CocoSplit(coco_folder(tmp_path, data))


@given(st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_annotations_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = data.draw(damaged((json.dumps(instances()).encode(),)))
    try:
        split = CocoSplit(coco_folder(tmp_path_factory.mktemp("coco"), content))
    except DataError:
        return
    assert split.truth()["annotations"]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (("person",), "has 2 categories, the detector tells 1 classes apart"),
        (("person", "hair drier"), "category 90 is 'toothbrush' where the detector has 'hair drier'"),
        (("toothbrush", "person"), "category 1 is 'person' where the detector has 'toothbrush'"),
    ],
)
def test_categories_of_something_else_are_refused(tmp_path: Path, wanted: tuple[str, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        CocoSplit(coco_folder(tmp_path)).check_categories(wanted)


def test_a_picture_of_other_sides_is_refused_when_it_is_read(tmp_path: Path) -> None:
    root = coco_folder(tmp_path)
    Image.new("RGB", (10, 16)).save(root / SPLIT / "000000000003.png")
    with pytest.raises(DataError, match="has 16×10 pixels, its annotations say 10×16"):
        CocoSplit(root).image(0)
