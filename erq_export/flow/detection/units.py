"""Where a detector's graphs lie: TARGET/PART in a run's folder. Torch-free.

The body and the graph of the whole are of one canvas each: "body" of the first, "body-1344x800" of a further one.
"""

from collections.abc import Iterable

from erq_export.contract.spec import ModelSpec
from erq_export.contract.targets import deployable, named
from erq_export.models.detectors.architecture import Size, architecture_of

TRACED_BY = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnx-ir",
    "onnxscript",
)  # packages that decide what graphs look like
WHOLE, BODY = "detector", "body"  # WHOLE: the graph with the glue in it, beside those of the parts


def units(model: ModelSpec, targets: Iterable[str]) -> tuple[str, ...]:
    """TARGET/PART of every graph of this detector, in the order in which they are written; for ONNX Runtime the whole too."""
    further = model.canvases[1:]
    parts = (*architecture_of(model.name).parts, *(on_canvas(BODY, canvas) for canvas in further))
    whole = (WHOLE, *(on_canvas(WHOLE, canvas) for canvas in further))
    return tuple(
        f"{target}/{part}"
        for target in deployable(targets)
        for part in (parts if named(target).package else (*parts, *whole))
    )


def on_canvas(kind: str, canvas: Size) -> str:
    """The name of a part on a further canvas."""
    return f"{kind}-{canvas[0]}x{canvas[1]}"


def split(part: str) -> tuple[str, Size | None]:
    """A part's name without its canvas, and that; None for the first one, and for what has none."""
    kind, _, sides = part.partition("-")
    if not sides:
        return kind, None
    height, width = sides.split("x")
    return kind, (int(height), int(width))
