"""Ellipses to find on a few pictures, and detections of them that are more or less off."""

from typing import Any

import numpy as np
import torch

from erq_export.data.runs import runs
from erq_export.models.detectors.detector import Detections
from erq_export.validate.metrics.average_precision import Found, in_cocos_form

HEIGHT, WIDTH, N = 160, 200, 12
CATEGORIES = (3, 17, 44)


def scenes(*, moved: float, seed: int = 0) -> tuple[dict[str, Any], list[Found]]:
    """Ellipses on twelve images, and detections that lie `moved` of a box' side away from them, with as many wrong ones."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    found: list[Found] = []
    for image in range(N):
        corners = rng.uniform(0, (WIDTH - 8, HEIGHT - 8), (6, 2))
        sides = np.minimum(rng.uniform(8, 160, (6, 2)), (WIDTH, HEIGHT) - corners)
        labels, scores = rng.integers(1, 4, 6), rng.uniform(0.05, 1, 6)
        for (x, y), (w, h), label in zip(corners[:4], sides[:4], labels[:4], strict=True):
            mask = ellipse(x, y, w, h)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": CATEGORIES[label - 1],
                    "bbox": [x, y, w, h],
                    "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(mask)},
                    "area": float(mask.sum()),
                    "iscrowd": int(len(annotations) % 7 == 6),
                }
            )
        off = np.concatenate((corners + moved * rng.standard_normal((6, 2)) * sides, sides), 1)
        boxes = torch.tensor(np.concatenate((off[:, :2], off[:, :2] + off[:, 2:]), 1)).float()
        masks = torch.tensor(ellipse(0, 0, 28, 28)[:28, :28]).float().expand(6, 28, 28)
        detections = Detections(boxes=boxes, labels=torch.tensor(labels), scores=torch.tensor(scores), masks=masks)
        found += in_cocos_form(detections, image_id=image, size=(HEIGHT, WIDTH), category_ids=CATEGORIES)
    images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(N)]
    categories = [{"id": c, "name": str(c)} for c in CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}, found


def ellipse(x: float, y: float, w: float, h: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
