"""A folder as COCO is unpacked, with two small pictures."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

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
