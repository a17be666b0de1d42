"""What `bench` times of a detector: every part by itself, given what one picture gives it at most.

Letters:  x (B, …) one picture, or what was pooled from all proposals or detections of one
What lies between the parts (proposals, pooling, suppression) is the same in float and quantized, and is not in these times.
"""

import copy
from collections.abc import Sequence
from typing import cast

from torch import nn

from erq_export.backends.machine import versions
from erq_export.contract.bench import BenchSpec
from erq_export.contract.errors import SpecError
from erq_export.exporters.onnx.parts import PartShape, batches, float_part, part_shapes, parts_of
from erq_export.exporters.onnx.write import save
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection.units import TRACED_BY, WHOLE, split
from erq_export.flow.heats import TWIN, Heat, Timed, of_target
from erq_export.flow.store.entry import Work
from erq_export.models.detectors.architecture import Size
from erq_export.models.detectors.detector import Detector
from erq_export.validate.contestants import Subject

NOT_TIMED = "it is not timed as a whole, its parts are"


def check_asked(name: str, asked: BenchSpec) -> None:
    """SpecError for what is for classifiers."""
    for word, given in (("--batch", asked.batch != BenchSpec().batch), ("--against", asked.against is not None)):
        if given:
            raise SpecError(
                f"{word} is for classifiers, {name} is a detector",
                fix="leave it out: every part is given what one picture gives it",
            )


def of_detector(timed: Timed) -> list[Heat]:
    """One a part, in the order in which they lie in the folder."""
    parts = dict.fromkeys(unit.partition("/")[2] for unit in timed.targets)
    return [_heat(timed, part) for part in parts if split(part)[0] != WHOLE]


def left_out(units: Sequence[str]) -> dict[str, str]:
    """Graphs that are not timed, and why."""
    return {unit: NOT_TIMED for unit in units if split(unit.partition("/")[2])[0] == WHOLE}


def _heat(timed: Timed, part: str) -> Heat:
    kind, canvas = split(part)
    shape = part_shapes(_detector(timed, canvas))[kind]
    n = len(shape.gives)
    twin, path = f"{TWIN}/{part}", _float_graph(timed, part, shape).folder / "model.onnx"
    found = [
        Subject(name=twin, takes="graph", role="twin", path=path, n_outputs=n),
        Subject(name=twin, takes="module", role="twin", module=lambda: _module(timed, part), n_outputs=n),
    ]
    for unit in timed.targets:
        if unit.partition("/")[2] == part:
            found += of_target(timed.out, unit, n_outputs=n)
    return Heat(subjects=found, size=shape.input_size, batch=(batches(kind)[2],), part=part)


def _float_graph(timed: Timed, part: str, shape: PartShape) -> Artifact:
    """The part in float, for baselines."""

    def make(work: Work) -> None:
        save(float_part(_module(timed, part), shape), work.folder / "model.onnx")

    inputs = {"model": timed.model.fingerprint, **versions(*TRACED_BY)}
    asked, what = {"target": "float", "part": part}, f"float graph of {part} of {timed.model.identity.name}"
    return timed.stages.kept("part-graph", inputs, asked, make, what)


def _module(timed: Timed, part: str) -> nn.Module:
    kind, canvas = split(part)
    return parts_of(_detector(timed, canvas))[kind]


def _detector(timed: Timed, canvas: Size | None) -> Detector:
    """A copy of the float detector on this canvas; None is its own."""
    detector = cast(Detector, copy.deepcopy(timed.model.model))
    if canvas is not None:
        detector.body.set_canvas(canvas)
    return detector
