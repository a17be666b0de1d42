"""ImageNet top-1 as published, and as a table beside ours.

Rows of the extended paper's table, and what is known of the ICML one (docs/method.md, "Published results").
"""

import statistics
from collections.abc import Sequence
from typing import Any

from erq_export.validate.report.markdown import table

MODELS = ("vit_s", "vit_b", "deit_t", "deit_s", "deit_b", "swin_s", "swin_b")

FULL_PRECISION = dict(zip(MODELS, (81.39, 84.54, 72.21, 79.85, 81.80, 83.23, 85.27), strict=True))

TOLERANCE = 0.3  # points between our float top-1 and the published one; more is another checkpoint or preprocessing

# Per bits: label and the models' values in MODELS' order; None where no value is known.
PUBLISHED: dict[str, dict[str, tuple[float | None, ...]]] = {
    "w3a4": {
        "GPTQ\\*": (23.32, 44.63, 42.25, 48.95, 61.75, 66.71, 71.43),
        "RepQ-ViT\\*": (15.65, 26.98, 29.34, 45.82, 58.92, 59.83, 44.17),
        "ERQ, ICML [1]": (45.68, None, None, None, None, None, None),
        "ERQ, TPAMI": (60.13, 72.37, 52.73, 69.09, 76.47, 78.12, 79.98),
    },
    "w4a4": {
        "GPTQ\\*": (67.59, 75.12, 58.96, 70.85, 76.10, 80.17, 81.08),
        "RepQ-ViT": (65.05, 68.48, 57.43, 69.03, 75.61, 79.45, 78.32),
        "ERQ, ICML [2]": (68.91, 76.63, 60.29, 72.56, 78.23, 80.74, 82.44),
        "ERQ, TPAMI": (71.61, 78.65, 61.79, 74.35, 79.18, 81.19, 83.32),
    },
}

NOTES = (
    "Published rows: the table of ERQ's extended paper (TPAMI).",
    "\\* reproduced by ERQ's authors.",
    "[1] derived: +22.36 over GPTQ\\*, from the abstract; the other models' values are not known to us.",
    "[2] secondary: as later papers quote it.",
)


def deviation(row: dict[str, Any]) -> str:
    """What is to be said where the float model is not the published one; "" where nothing is."""
    settings, published = row["settings"], FULL_PRECISION[row["model"]]
    if settings["weights"] == "random":
        return f"{row['model']} has random weights: its accuracy means nothing"
    if abs(row["top1"] - published) <= TOLERANCE:
        return ""
    return (
        f"{row['model']} in float32 has {row['top1']:.2f} %, published {published:.2f} %: check the checkpoint, the"
        f" preprocessing and the labels ({settings['val']['n_images']} images) before you read on"
    )


def page(
    results: Sequence[dict[str, Any]],
    machine: dict[str, Any],
    *,
    models: Sequence[str],
    bits: Sequence[str],
    methods: Sequence[str],
    calib: int,
) -> str:
    """A table for each of the bits, the paper's rows above ours; a dash where a value is not known, or not yet there."""
    floats = {row["model"]: row for row in results if row["method"] == "float"}
    n_images = {row["settings"]["val"]["n_images"] for row in results}
    parts = [
        "# ImageNet top-1 beside the paper",
        f"Calibrated on {calib} images; fake-quant reference on {', '.join(map(str, sorted(n_images)))} validation"
        " images; ours: mean ± standard deviation over the calibration seeds, where there are several.",
        *(f"**{doubt}.**" for row in floats.values() if (doubt := deviation(row))),
    ]
    head = ["", *models]
    for precision in bits:
        body = [["full precision, published", *(f"{FULL_PRECISION[m]:.2f}" for m in models)]]
        for label, values in PUBLISHED.get(precision, {}).items():
            known = dict(zip(MODELS, values, strict=True))
            body.append([label, *(cell([] if known[m] is None else [known[m]]) for m in models)])
        body.append(["**float, here**", *(cell([floats[m]["top1"]] if m in floats else []) for m in models)])
        for way in methods:
            found = [
                [r["top1"] for r in results if (r["model"], r["bits"], r["method"]) == (m, precision, way)]
                for m in models
            ]
            body.append([f"**{way}, here**", *map(cell, found)])
        parts += [f"## {precision.upper()}", table(head, body)]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("erq-export", "torch", "timm"))
    parts += ["\n".join(f"- {note}" for note in NOTES), f"{machine['processor']}; {versions}."]
    return "\n\n".join(parts) + "\n"


def cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
