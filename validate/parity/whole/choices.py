"""What a graph of the whole detector chooses on one picture.

Its glue has few operators that choose, each for one purpose or two, so they are found by what they are, in the order of the
graph: TopK the best anchors of every level; NonMaxSuppression proposals, then detections; ArgMax the class whose box the next
head of a cascade gets; NonZero scores that are high enough. RoiAlign shows each head's boxes, those of other levels shrunk to
nothing. Codes are where the manifest says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from erq_export.contract.manifest import GraphManifest, Quantized
from erq_export.models.detectors.anchors import STRIDES
from erq_export.models.detectors.framing import Framed
from erq_export.models.detectors.pooling import POOLED
from erq_export.models.detectors.whole import TAKES

from .codes import Watched, of_another_export


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a graph chose and found.

    values: all outputs by name, codes and what is found among them;  best (k,) anchors of each level;  proposals (m,),
    detections (m,): those of all candidates that stay, best first;  classes (n,) without the background, behind every head but
    the last;  above (2, c) boxes and classes whose score is high enough;  boxes (n, 4), levels (n,) that each head is given,
    those of masks last.
    """

    values: dict[str, Tensor]
    best: list[Tensor]
    proposals: Tensor
    classes: list[Tensor]
    above: Tensor
    detections: Tensor
    boxes: list[Tensor]
    levels: list[Tensor]


class WatchedDetector:
    """A graph of the whole in ONNX Runtime, its choices beside its outputs. DataError where it has not the choices of one."""

    def __init__(self, path: Path, manifest: GraphManifest, *, n_heads: int) -> None:
        model = ir.load(path)
        graph = model.graph
        self._best = _outputs(graph, "TopK", len(STRIDES), output=1)
        self._stay = _outputs(graph, "NonMaxSuppression", 2)
        self._classes = _outputs(graph, "ArgMax", n_heads - 1)
        (self._above,) = _outputs(graph, "NonZero", 1)
        self._regions = _inputs(graph, "RoiAlign", POOLED * (n_heads + 1), 1)
        more = (*self._best, *self._stay, *self._classes, self._above, *self._regions)
        self._graph = Watched(path, model, manifest, *more)

    @property
    def places(self) -> Mapping[str, Sequence[Quantized]]:
        """Where layers stand in the file, by path."""
        return self._graph.places

    def runs_as_it_is(self, framed: Framed, choices: Choices) -> bool:
        """As `Watched` has it."""
        return self._graph.runs_as_it_is(_feeds(framed), choices.values)

    def __call__(self, framed: Framed) -> Choices:
        values = self._graph(_feeds(framed))
        starts = range(0, len(self._regions), POOLED)
        regions = [torch.stack([values[name] for name in self._regions[i : i + POOLED]]) for i in starts]
        proposals, detections = (values[name][:, 2] for name in self._stay)
        return Choices(
            values=values,
            best=[values[name] for name in self._best],
            proposals=proposals,
            classes=[values[name] for name in self._classes],
            above=values[self._above],
            detections=detections,
            boxes=[r.sum(0) for r in regions],
            levels=[r.abs().amax(2).argmax(0) for r in regions],
        )


def _feeds(framed: Framed) -> dict[str, Tensor]:
    return {TAKES[0]: framed.pixels, TAKES[1]: torch.tensor(framed.size)}


def _outputs(graph: ir.Graph, operator: str, n: int, *, output: int = 0) -> list[str]:
    return [str(node.outputs[output].name) for node in _nodes(graph, operator, n)]


def _inputs(graph: ir.Graph, operator: str, n: int, i: int) -> list[str]:
    return [str(value.name) for node in _nodes(graph, operator, n) if (value := node.inputs[i]) is not None]


def _nodes(graph: ir.Graph, operator: str, n: int) -> list[ir.Node]:
    nodes = [node for node in graph if node.op_type == operator]
    if len(nodes) != n:
        raise of_another_export(f"it has {len(nodes)} {operator}, of a whole detector {n} choose")
    return nodes
