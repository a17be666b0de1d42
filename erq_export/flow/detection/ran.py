"""Which of all that was made runs on this machine and what it finds; of the rest, why it was not run.

Engines were not yet run on a GPU.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from erq_export.contract.errors import EngineError, MachineError
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection import found as finding
from erq_export.flow.detection.units import BODY, WHOLE, on_canvas, split
from erq_export.flow.detection.work import DetectorWork
from erq_export.flow.engines import MODEL_ENGINE, refusal
from erq_export.flow.measure import Made
from erq_export.models.detectors.architecture import Size
from erq_export.validate.metrics.average_precision import Found
from erq_export.validate.parity.floor import FLOAT_E, HALF_E

NO_PICTURE = "no measured picture lies on its canvas"
NOTHING_TO_FIND = "there was nothing to find"


@dataclass(frozen=True, kw_only=True)
class Way:
    """What one way to run the detector finds; e: the relative rounding of what it computes in between the layers."""

    found: list[Found]
    e: float


@dataclass(frozen=True)
class Ran:
    """Ways by the name of what runs them; sentences on what was made and not run."""

    ways: dict[str, Way] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)


def ran(work: DetectorWork, made: Made) -> Ran:
    """Graphs of the whole in ONNX Runtime, and every target's engines where all of them run here."""
    found = Ran()
    if work.measured_on is None:
        found.not_run.extend(_nothing_to_find(made))
        return found
    if whole := _whole(work, made):
        found.ways["onnx in ONNX Runtime"] = Way(found=finding.of_graphs(work, whole), e=FLOAT_E)
        found.not_run.extend(f"onnx/{name} was not run: {NO_PICTURE}." for name in _without_pictures(work, WHOLE))
    for target, engines in _engines(made).items():
        why = _refused(target, engines, made)
        if why is None:
            try:
                way = Way(found=finding.of_engines(work, target, engines), e=HALF_E)
            except (EngineError, MachineError) as e:  # the report says it, and all else that was measured
                why = e.problem
        if why is not None:
            found.not_run.append(f"{target}'s engines were compiled, not run: {why}.")
            continue
        found.ways[f"{target} engines"] = way
        bodies = _without_pictures(work, BODY)
        found.not_run.extend(f"the engine of {target}/{name} was not run: {NO_PICTURE}." for name in bodies)
        if not way.found:
            found.not_run.append(f"{target}'s engines of masks were not run: nothing was found.")
    return found


def n_on(work: DetectorWork) -> tuple[int, ...]:
    """How many of the pictures lie on each canvas."""
    if work.measured_on is None:
        return (0,) * len(work.canvases)
    on = Counter(work.framing.canvas_for(work.measured_on.size(i)) for i in work.pictures)
    return tuple(on[canvas] for canvas in work.canvases)


def _without_pictures(work: DetectorWork, kind: str) -> list[str]:
    """The names of what is of this kind and of a canvas on which no picture lies."""
    named = [kind, *(on_canvas(kind, canvas) for canvas in work.canvases[1:])]
    return [name for name, n in zip(named, n_on(work), strict=True) if n == 0]


def _whole(work: DetectorWork, made: Made) -> dict[Size, Artifact]:
    """The graphs of the whole by their canvas."""
    found = dict[Size, Artifact]()
    for unit, graph in made.graphs.items():
        kind, canvas = split(unit.partition("/")[2])
        if kind == WHOLE:
            found[canvas or work.canvases[0]] = graph
    return found


def _engines(made: Made) -> dict[str, dict[str, Artifact]]:
    """By target and part."""
    found: dict[str, dict[str, Artifact]] = {}
    for unit, engine in made.engines.items():
        target, _, part = unit.partition("/")
        found.setdefault(target, {})[part] = engine
    return found


def _refused(target: str, engines: Mapping[str, Artifact], made: Made) -> str | None:
    """Why they cannot all be run here; None where they can."""
    every = {unit.partition("/")[2] for unit in made.graphs if unit.startswith(f"{target}/")}
    if missing := sorted(every - set(engines)):
        return f"there is none of {', '.join(missing)}"
    for engine in engines.values():
        if (why := engine.read(lambda folder: refusal(folder / MODEL_ENGINE))) is not None:
            return why
    return None


def _nothing_to_find(made: Made) -> Iterator[str]:
    """What could have been run."""
    for unit in made.graphs:
        if split(unit.partition("/")[2])[0] == WHOLE:
            yield f"{unit} was not run: {NOTHING_TO_FIND}."
    for target in _engines(made):
        yield f"{target}'s engines were compiled, not run: {NOTHING_TO_FIND}."
