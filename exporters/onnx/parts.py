"""A detector's parts as graphs of fixed shapes: the body of a canvas, and each head for any number of boxes.

What lies between them depends on the data and stays in PyTorch (`models.detectors.detector`). Paths within a part are those of
the whole detector, so that claims, manifests and the bundle speak of the same layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from erq_export.contract.bundle import Deployed
from erq_export.models.detectors.anchors import STRIDES
from erq_export.models.detectors.architecture import Size
from erq_export.models.detectors.detector import MOST, Detector
from erq_export.models.detectors.heads import BOX_SIDE, MASK_SIDE
from erq_export.models.detectors.proposals import BEST
from erq_export.models.detectors.whole import GIVES, TAKES, Whole
from erq_export.models.rebuild import reference_model

from .graph import Editor, name_by_module
from .trace import INPUT, exported, trace

POOLED = "pooled"  # what a head takes: (n, C, side, side)
LEVELS = range(len(STRIDES))
BATCHES = {"body": (1, 1, 1), "box": (1, BEST, BEST), "mask": (1, MOST, MOST)}  # of images, proposals, detections
BODY_GIVES = tuple(f"{kind}.{i}" for kind in ("map", "objectness", "deltas") for i in LEVELS)


@dataclass(frozen=True, kw_only=True)
class PartShape:
    """What one part takes and gives, by name; input_size without the batch, which is free."""

    takes: str
    input_size: tuple[int, int, int]
    gives: tuple[str, ...]


def batches(part: str) -> tuple[int, int, int]:
    """Smallest, usual and largest batch of a part by its name without a canvas."""
    return BATCHES[part.partition(".")[0]]


def part_shapes(detector: Detector) -> dict[str, PartShape]:
    """By the part's name."""
    channels = detector.architecture.channels
    box = PartShape(takes=POOLED, input_size=(channels, BOX_SIDE, BOX_SIDE), gives=("logits", "deltas"))
    mask = PartShape(takes=POOLED, input_size=(channels, MASK_SIDE, MASK_SIDE), gives=("logits",))
    body = PartShape(takes=INPUT, input_size=(3, *detector.body.canvas), gives=BODY_GIVES)
    kinds = {"body": body, "box": box, "mask": mask}
    return {name: kinds[name.partition(".")[0]] for name in detector.parts()}


class Part(nn.Module):
    """One part under its path in the whole detector, its outputs side by side."""

    def __init__(self, path: str, module: nn.Module) -> None:
        super().__init__()
        self.path = path
        holder: nn.Module = self
        *outer, last = path.split(".")
        for name in outer:
            holder.add_module(name, inner := nn.Module())
            holder = inner
        holder.add_module(last, module)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        out: Any = self.get_submodule(self.path)(x)
        return out if isinstance(out, Tensor) else tuple(_flat(out))


def _flat(out: Any) -> Iterator[Tensor]:
    for one in out:
        if isinstance(one, Tensor):
            yield one
        else:
            yield from one


def parts_of(detector: Detector) -> dict[str, Part]:
    """Every part under its path, by its name. A detector of one head has its modules at box.0 and mask.0."""
    return {
        name: Part(name if name == "body" or "." in name else f"{name}.0", module)
        for name, module in detector.parts().items()
    }


def part_graphs(bundle: Deployed) -> dict[str, ir.Model]:
    """The traces that every target's graphs of the parts are lowered from, by the part's name."""
    detector = _detector(bundle)
    return {name: _traced(part, part_shapes(detector)[name]) for name, part in parts_of(detector).items()}


def body_graph(bundle: Deployed, canvas: Size) -> ir.Model:
    """The trace of the body on another canvas than the one that it was calibrated on: its layers are the same."""
    detector = _detector(bundle, canvas)
    return _traced(parts_of(detector)["body"], part_shapes(detector)["body"])


def float_part(part: nn.Module, shape: PartShape) -> ir.Model:
    """A float part's graph, for baselines: same trace, nothing quantized."""
    graph = _traced(part, shape)
    Editor(graph).finish()
    return graph


def whole_graph(bundle: Deployed, canvas: Size | None = None) -> ir.Model:
    """The trace of the whole detector with its glue, for ONNX Runtime: a picture on its canvas and its size there → boxes,
    labels, scores and masks (`models.detectors.whole`). Paths are those of the bundle. canvas: another than its own."""
    detector = _detector(bundle, canvas)
    height, width = detector.body.canvas
    examples = (torch.zeros(1, 3, height, width), torch.tensor((height, width)))
    graph = exported(Whole(detector), examples, takes=TAKES, gives=GIVES)
    name_by_module(graph)
    return graph


def _detector(bundle: Deployed, canvas: Size | None = None) -> Detector:
    detector = reference_model(bundle)
    if not isinstance(detector, Detector):
        raise TypeError(f"the bundle is of a {type(detector).__name__}, which has no parts")
    if canvas is not None:
        detector.body.set_canvas(canvas)
    return detector


def _traced(part: nn.Module, shape: PartShape) -> ir.Model:
    graph = trace(part, shape.input_size, takes=shape.takes, gives=shape.gives)
    name_by_module(graph)
    return graph
