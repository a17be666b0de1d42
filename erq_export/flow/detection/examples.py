"""A few pictures with what was found drawn into them, in float and quantized, side by side in the report."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from erq_export.contract.detection import Example
from erq_export.flow.detection.found import image_ids
from erq_export.flow.detection.work import DetectorWork
from erq_export.validate.metrics.average_precision import Found, library, of_kind

N_SHOWN = 3
LONGEST = 384  # pixels of a side
LEAST_SCORE = 0.3  # of what is drawn
INKS = ("#e6550d", "#3182bd", "#31a354", "#c51b8a", "#8c6d31", "#17becf", "#756bb1", "#d62728")
TINT, QUALITY, TEXT = 0.45, 85, 12


def examples(work: DetectorWork, exact: Sequence[Found], reference: Sequence[Found]) -> tuple[Example, ...]:
    """Of each third of the measured pictures the one with the most things on it."""
    truth, ids = work.measured_on, image_ids(work)
    if truth is None:
        return ()
    what = truth.truth(work.pictures)
    busy = Counter(thing["image_id"] for thing in what["annotations"])
    names = {category["id"]: category["name"] for category in what["categories"]}
    full = [i for i in work.pictures if ids[i] in busy]
    n = min(N_SHOWN, len(full))
    thirds = [full[k * len(full) // n : (k + 1) * len(full) // n] for k in range(n)]
    chosen = [max(third, key=lambda i: busy[ids[i]]) for third in thirds]
    return tuple(
        Example(
            name=truth.name(i),
            exact=drawn(truth.image(i), [one for one in exact if one["image_id"] == ids[i]], names),
            reference=drawn(truth.image(i), [one for one in reference if one["image_id"] == ids[i]], names),
        )
        for i in chosen
    )


def drawn(picture: Image.Image, found: Sequence[Found], names: dict[int, str]) -> str:
    """A JPEG in base64: masks tinted, boxes with class and score; surer ones lie above."""
    base = np.asarray(picture.convert("RGB")).astype(np.float32)
    kept = sorted((one for one in found if one["score"] >= LEAST_SCORE), key=lambda one: one["score"])
    order = sorted(names)
    for one in kept:
        mask = library("mask").decode(of_kind(one, "mask", tuple(one["segmentation"]["size"]))).astype(bool)
        base[mask] = (1 - TINT) * base[mask] + TINT * np.array(_rgb(_ink(order, one)))
    image = Image.fromarray(base.round().astype(np.uint8))
    scale = LONGEST / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pen = ImageDraw.Draw(image)
    for one in kept:
        x, y, width, height = (scale * side for side in one["bbox"])
        pen.rectangle((x, y, x + width, y + height), outline=_ink(order, one), width=2)
        pen.text(
            (x + 1, y - TEXT if y > TEXT else y + 2),
            f"{names[one['category_id']]} {one['score']:.2f}",
            fill="white",
            **_outlined(),
        )
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY)
    return base64.b64encode(data.getvalue()).decode("ascii")


def _outlined() -> dict[str, Any]:
    return {"stroke_width": 1, "stroke_fill": "black"}


def _ink(order: Sequence[int], one: Found) -> str:
    return INKS[order.index(one["category_id"]) % len(INKS)]


def _rgb(ink: str) -> tuple[int, ...]:
    return tuple(int(ink[k : k + 2], 16) for k in (1, 3, 5))
