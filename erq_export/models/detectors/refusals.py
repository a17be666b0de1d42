"""What a checkpoint is that is not of the detector asked for, by the names and shapes in it."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import shown
from erq_export.models.detectors.architecture import PUBLISHED, Architecture

FOREIGN = (  # how names of other code begin, and what it is
    (
        "backbone.stages.",
        "is of OpenMMLab's zoo, which names layers otherwise and merges patches in another channel order",
    ),
    ("backbone.bottom_up.", "is of detectron2"),
    ("backbone.body.", "is of torchvision"),
    ("layers.0.", "is of a Swin classifier, without the heads of a detector"),
)
BLOCK = re.compile(r"backbone\.layers\.(\d{1,3})\.blocks\.(\d{1,3})\.norm1\.weight")
KIND = {False: "Mask R-CNN", True: "Cascade Mask R-CNN"}
OF_KIND = {
    False: re.compile(r"roi_head\.(bbox|mask)_head\.[a-z].*"),
    True: re.compile(r"roi_head\.(bbox|mask)_head\.\d.*"),
}


def refuse_foreign(state: Mapping[str, Tensor], path: Path) -> None:
    """DataError for a file of other code, which may hold the same numbers in another order."""
    for start, what in FOREIGN:
        if name := next((n for n in state if n.startswith(start)), None):
            files = ", ".join(published.file for published in PUBLISHED.values())
            raise DataError(
                f"the checkpoint {shown(path)} {what}: {shown(name)}",
                fix=f"a file that the authors of Swin published for detection: {files}",
            )


def refuse_another(state: Mapping[str, Tensor], wanted: Architecture, path: Path) -> None:
    """DataError where the file is of a detector of another kind, width, depth, or number of classes."""
    problem = _kind(state, wanted) or _width(state, wanted) or _depths(state, wanted) or _classes(state, wanted)
    if problem:
        raise DataError(f"the checkpoint {shown(path)} {problem}", fix=file_of(wanted))


def file_of(wanted: Architecture) -> str:
    """What to give instead."""
    for published in PUBLISHED.values():
        if published.architecture == wanted:
            return f"{published.file}, or the detector that the file is of: {', '.join(PUBLISHED)}"
    return f"a file of the detector asked for, or one of {', '.join(PUBLISHED)} with its file"


def _kind(state: Mapping[str, Tensor], wanted: Architecture) -> str | None:
    other = not wanted.cascade
    name = next((n for n in state if OF_KIND[other].fullmatch(n)), None)
    return name and f"is of a {KIND[other]}, not of a {KIND[wanted.cascade]}: {shown(name)}"


def _width(state: Mapping[str, Tensor], wanted: Architecture) -> str | None:
    name = "backbone.patch_embed.proj.weight"
    width = _rows(state, name)
    return None if width in (None, wanted.dim) else f"has {width} channels in its first stage, not {wanted.dim}: {name}"


def _depths(state: Mapping[str, Tensor], wanted: Architecture) -> str | None:
    blocks = {(int(m[1]), int(m[2])): name for name in state if (m := BLOCK.fullmatch(name))}
    more = [place for place in sorted(blocks) if place[0] >= len(wanted.depths) or place[1] >= wanted.depths[place[0]]]
    if more:
        return f"has more blocks than {wanted.depths} in its stages: {blocks[more[0]]}"
    want = [(stage, block) for stage, depth in enumerate(wanted.depths) for block in range(depth)]
    if blocks and (fewer := [place for place in want if place not in blocks]):
        return "has fewer blocks than {} in its stages, no backbone.layers.{}.blocks.{}".format(
            wanted.depths, *fewer[0]
        )
    return None


def _classes(state: Mapping[str, Tensor], wanted: Architecture) -> str | None:
    name = "roi_head.bbox_head.{}fc_cls.weight".format("0." if wanted.cascade else "")
    rows = _rows(state, name)
    return (
        None if rows in (None, wanted.classes + 1) else f"tells {rows - 1} classes apart, not {wanted.classes}: {name}"
    )


def _rows(state: Mapping[str, Tensor], name: str) -> int | None:
    return len(state[name]) if name in state and state[name].dim() else None
