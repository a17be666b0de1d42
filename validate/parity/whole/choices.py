"""Where a graph of the whole detector chooses, and what it chose for one picture.

Its glue has few operators that choose, and those only once for each purpose, so they are found by what they are, in the order of
the graph: TopK the best anchors of every level; NonMaxSuppression proposals, then detections; ArgMax the class whose box the next
head of a cascade gets; NonZero scores that are high enough. RoiAlign shows each head's boxes, those of other levels shrunk to
nothing. Codes are where the manifest says.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from erq_export.backends.onnxruntime import run, session
from erq_export.contract.errors import DataError
from erq_export.contract.manifest import GraphManifest, Quantized
from erq_export.models.detectors.anchors import STRIDES
from erq_export.models.detectors.framing import Framed
from erq_export.models.detectors.pooling import POOLED
from erq_export.models.detectors.whole import GIVES, TAKES

from ..pieces import serialized


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a graph chose and found.

    codes: of every quantizer by its tensor, in its container;  best (k,) anchors of each level;  proposals (m,), detections (m,):
    those of all candidates that stay, best first;  classes (n,) without the background, behind every head but the last;  above
    (2, c) boxes and classes whose score is high enough;  boxes (n, 4), levels (n,) that each head is given, those of masks last;
    found: boxes, labels, scores, masks.
    """

    codes: dict[str, Tensor]
    best: list[Tensor]
    proposals: Tensor
    classes: list[Tensor]
    above: Tensor
    detections: Tensor
    boxes: list[Tensor]
    levels: list[Tensor]
    found: dict[str, Tensor]


class Watched:
    """A graph of the whole in ONNX Runtime, its choices beside its outputs. DataError where it has not the choices of one."""

    def __init__(self, path: Path, manifest: GraphManifest, *, n_heads: int) -> None:
        model = ir.load(path)
        graph = model.graph
        self.places: dict[str, list[Quantized]] = defaultdict(list)
        for site in (*manifest.sites, *manifest.operands):
            self.places[site.path].append(site)
        self.best = _outputs(graph, "TopK", len(STRIDES), output=1)
        self.proposals, self.detections = _outputs(graph, "NonMaxSuppression", 2)
        self.classes = _outputs(graph, "ArgMax", n_heads - 1)
        (self.above,) = _outputs(graph, "NonZero", 1)
        self.regions = _inputs(graph, "RoiAlign", POOLED * (n_heads + 1), 1)
        codes = (place.codes for places in self.places.values() for place in places)
        self._show(
            graph, [*codes, *self.best, self.proposals, self.detections, *self.classes, self.above, *self.regions]
        )
        self.running = session(serialized(model))

    def _show(self, graph: ir.Graph, names: Sequence[str]) -> None:
        """Make these values outputs too. What is computed stays as it was: quantizers are kept by their codes' reader."""
        values = {str(value.name): value for node in graph for value in node.outputs} | dict(graph.initializers)
        if absent := [name for name in names if name not in values]:
            raise _of_another_export(f"it has no {absent[0]}")
        shown = {str(value.name) for value in graph.outputs}
        graph.outputs.extend(values[name] for name in dict.fromkeys(names) if name not in shown)

    def __call__(self, framed: Framed) -> Choices:
        feeds = {TAKES[0]: framed.pixels, TAKES[1]: torch.from_numpy(np.array(framed.size))}
        values = run(self.running, feeds)
        regions = [torch.stack([values[name] for name in self.regions[i : i + POOLED]]) for i in self._heads()]
        return Choices(
            codes={place.codes: values[place.codes] for places in self.places.values() for place in places},
            best=[values[name] for name in self.best],
            proposals=values[self.proposals][:, 2],
            classes=[values[name] for name in self.classes],
            above=values[self.above],
            detections=values[self.detections][:, 2],
            boxes=[r.sum(0) for r in regions],
            levels=[r.abs().amax(2).argmax(0) for r in regions],
            found={name: values[name] for name in GIVES},
        )

    def _heads(self) -> range:
        return range(0, len(self.regions), POOLED)


def _outputs(graph: ir.Graph, operator: str, n: int, *, output: int = 0) -> list[str]:
    return [str(node.outputs[output].name) for node in _nodes(graph, operator, n)]


def _inputs(graph: ir.Graph, operator: str, n: int, i: int) -> list[str]:
    return [str(value.name) for node in _nodes(graph, operator, n) if (value := node.inputs[i]) is not None]


def _nodes(graph: ir.Graph, operator: str, n: int) -> list[ir.Node]:
    nodes = [node for node in graph if node.op_type == operator]
    if len(nodes) != n:
        raise _of_another_export(f"it has {len(nodes)} {operator}, {n} choose")
    return nodes


def _of_another_export(why: str) -> DataError:
    return DataError(
        f"the graph of the whole detector is not as it was exported: {why}",
        fix="model.onnx and manifest.json must be of the same export: export again",
    )
