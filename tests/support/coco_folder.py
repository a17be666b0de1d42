"""A folder as COCO is unpacked: with two small pictures, or with some of its pictures turned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from erq_export.data.runs import runs

SPLIT = "val2017"


def instances() -> dict[str, Any]:
    """Two pictures, one of them empty; category ids with a gap and not in order, as COCO's have."""
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "url": ""}],
        "images": [
            {"id": 7, "file_name": "000000000007.png", "height": 20, "width": 30, "license": 1},
            {"id": 3, "file_name": "000000000003.png", "height": 10, "width": 16, "coco_url": ""},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 90,
                "bbox": [2, 3, 10.5, 8],
                "segmentation": [[2, 3, 12.5, 3, 12.5, 11, 2, 11]],
                "area": 84,
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 1,
                "bbox": [0, 0, 2, 20],
                "segmentation": {"size": [20, 30], "counts": [0, 40, 560]},
                "area": 40.0,
                "iscrowd": 1,
            },
        ],
        "categories": [
            {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
            {"id": 1, "name": "person", "supercategory": "person"},
        ],
    }


def coco_folder(root: Path, content: Any = None) -> Path:
    """`content` in place of the annotations: a dict, or bytes as they are."""
    content = instances() if content is None else content
    (root / SPLIT).mkdir(parents=True)
    (root / "annotations").mkdir()
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (root / "annotations" / f"instances_{SPLIT}.json").write_bytes(data)
    for picture in instances()["images"]:
        Image.new("RGB", (picture["width"], picture["height"]), (9, 99, 199)).save(root / SPLIT / picture["file_name"])
    return root


def turned(root: Path, split: str, ids: set[int]) -> None:
    """Mirror these scenes of a folder in COCO's layout on their diagonal: they stand upright then."""
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    for picture in (picture for picture in content["images"] if picture["id"] in ids):
        picture["height"], picture["width"] = picture["width"], picture["height"]
        path = root / split / picture["file_name"]
        Image.open(path).transpose(Image.Transpose.TRANSPOSE).save(path)
    for thing in (thing for thing in content["annotations"] if thing["image_id"] in ids):
        mask = decoded(thing["segmentation"]).T
        x, y, width, height = thing["bbox"]
        thing |= {"bbox": [y, x, height, width], "segmentation": {"size": [*mask.shape], "counts": runs(mask)}}
    file.write_text(json.dumps(content))


def decoded(segmentation: dict[str, Any]) -> NDArray[np.bool_]:
    """(H, W) of COCO's runs, which go down the columns."""
    height, width = segmentation["size"]
    colours = np.arange(len(segmentation["counts"])) % 2 == 1
    return np.repeat(colours, segmentation["counts"]).reshape(width, height).T
