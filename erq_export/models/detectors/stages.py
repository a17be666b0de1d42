"""A detector as consecutive stages: what one makes of an image, the next ones read by name.

State   pixels (1, 3, H, W), size (2,) of the picture on the canvas  →  x (1, h, w, C), feature.i (1, C, h, w) of Swin's stages
        →  map.i of the pyramid  →  boxes (n, 4), logits.i (n, 1 + K)  →  boxes, labels, scores of the detections, masks

What lies between the parts (which boxes, which of them are detections) is the glue of `detector`, in floating point: heads are
calibrated on what the float detector proposes and finds.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from erq_export.contract.errors import DataError
from erq_export.contract.sites import Stage
from erq_export.models.detectors.body import Pyramid
from erq_export.models.detectors.detector import Detector, joined, kept, refined, scored
from erq_export.models.detectors.heads import BOX_SIDE, MASK_SIDE
from erq_export.models.detectors.pooling import pooled
from erq_export.models.detectors.proposals import proposals
from erq_export.models.detectors.sites import detector_sites
from erq_export.models.family import operand_sites

Named = dict[str, Tensor]
Step = Callable[[Named], Named]


def stages(detector: Detector) -> tuple[Stage, ...]:
    """Those of a prepared detector. A state holds one image; all images lie on one canvas, to which the body is set."""
    sites = detector_sites(detector)

    def stage(name: str, forward: Step, *, varied: bool = False) -> Stage:
        inside = f"{name}."
        own = tuple(site for site in sites if site.path.startswith(inside))
        operands = operand_sites(f"{name}.attn") if ".blocks." in name else ()
        return Stage(name=name, forward=forward, sites=own, operands=operands, varied=varied)

    found = [stage("body.patch_embed", _embed(detector))]
    for i, layer in enumerate(cast(list[Any], detector.body.layers)):
        path = f"body.layers.{i}"
        if not isinstance(layer.downsample, nn.Identity):
            found.append(stage(f"{path}.downsample", _on_x(layer.downsample)))
        last = len(layer.blocks) - 1
        for j, block in enumerate(layer.blocks):
            forward = _on_x(block) if j < last else _feature(block, detector.body.norms[i], i)
            found.append(stage(f"{path}.blocks.{j}", forward))
    found += [
        stage("body.fpn", _pyramid(detector)),
        stage("body.rpn", _proposals(detector), varied=True),  # one call a level
        *(stage(f"box.{i}", _Boxes(detector, i), varied=True) for i in range(len(detector.box))),
        *(stage(f"mask.{i}", _Masks(detector, i), varied=True) for i in range(len(detector.mask))),
    ]
    return tuple(found)


def _embed(detector: Detector) -> Step:
    def forward(state: Named) -> Named:
        pixels = state["pixels"]
        own, given = ("×".join(map(str, sides)) for sides in (detector.body.canvas, pixels.shape[2:]))
        if given != own:
            raise DataError(
                f"a picture lies on a canvas of {given} pixels, the detector is set to {own}",
                fix="load the detector for the pictures' canvas, or frame them for its own",
            )
        return {"size": state["size"], "x": detector.body.patch_embed(pixels)}

    return forward


def _on_x(module: nn.Module) -> Step:
    return lambda state: {**state, "x": module(state["x"])}


def _feature(block: nn.Module, norm: nn.Module, i: int) -> Step:
    """The last block of Swin's i-th stage, whose output is also the pyramid's."""

    def forward(state: Named) -> Named:
        x = block(state["x"])
        return {**state, "x": x, f"feature.{i}": norm(x).permute(0, 3, 1, 2).contiguous()}

    return forward


def _pyramid(detector: Detector) -> Step:
    def forward(state: Named) -> Named:
        features = OrderedDict((name, t) for name, t in state.items() if name.startswith("feature."))
        maps = detector.body.fpn(features).values()
        return {"size": state["size"]} | {f"map.{i}": t for i, t in enumerate(maps)}

    return forward


def _proposals(detector: Detector) -> Step:
    def forward(state: Named) -> Named:
        maps = _maps(state)
        objectness, deltas = detector.body.rpn(list(maps))
        return {**state, "boxes": proposals(Pyramid(maps, tuple(objectness), tuple(deltas)), _size(state))}

    return forward


@dataclass(frozen=True)
class _Boxes:
    """The i-th box head on the boxes of the one before, or on the proposals; behind the last one detections are chosen."""

    detector: Detector
    i: int

    def __call__(self, state: Named) -> Named:
        boxes, size = state["boxes"], _size(state)
        if not len(boxes):
            return {**state, **_nothing(boxes)}
        logits, deltas = self.detector.box[self.i](pooled(_maps(state), boxes, BOX_SIDE))
        state = {**state, f"logits.{self.i}": logits}
        if self.i + 1 < len(self.detector.box):
            return {**state, "boxes": refined(logits, deltas, boxes, self.i, size)}
        every = [state[f"logits.{j}"] for j in range(self.i + 1)]
        scores, of_classes = scored(every, deltas, boxes, size)
        boxes, labels, scores = kept(of_classes, scores)
        return {**state, "boxes": boxes, "labels": labels, "scores": scores}


@dataclass(frozen=True)
class _Masks:
    """The i-th mask head on the detections; behind the last one each has its mask."""

    detector: Detector
    i: int

    def __call__(self, state: Named) -> Named:
        boxes = state["boxes"]
        if not len(boxes):
            return {**state, "masks": boxes.new_zeros(0, 2 * MASK_SIDE, 2 * MASK_SIDE)}
        logits = self.detector.mask[self.i](pooled(_maps(state), boxes, MASK_SIDE))
        state = {**state, f"mask.{self.i}": logits}
        if self.i + 1 < len(self.detector.mask):
            return state
        return {**state, "masks": joined([state[f"mask.{j}"] for j in range(self.i + 1)], state["labels"])}


def _maps(state: Named) -> tuple[Tensor, ...]:
    return tuple(t for name, t in sorted(state.items()) if name.startswith("map."))


def _size(state: Named) -> tuple[int, int]:
    height, width = state["size"].tolist()
    return height, width


def _nothing(boxes: Tensor) -> Named:
    return {"labels": torch.zeros(0, dtype=torch.long, device=boxes.device), "scores": boxes.new_zeros(0)}
