"""What `bench` times side by side: each heat's subjects are given the same inputs. A classifier's run is one heat."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erq_export.contract.bench import BenchSpec
from erq_export.contract.bundle import Bundle
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.targets import named
from erq_export.flow.artifacts import Artifact
from erq_export.flow.engines import MODEL_ENGINE
from erq_export.flow.stages import Stages
from erq_export.models.loading import Loaded
from erq_export.validate.contestants import Subject

TWIN = "float32"
ON_ONNXRUNTIME = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What can be timed of a run: its float model, its bundle and its folder; missing: targets whose graphs are gone."""

    stages: Stages
    model: Loaded
    bundle: Artifact
    out: OutputFolder
    targets: Sequence[str]
    missing: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Subjects, twins first, and the inputs that all of them are given: (B, *size) of every batch B.

    part: of a detector, empty for what is run whole.
    """

    subjects: Sequence[Subject]
    size: tuple[int, int, int]
    batch: tuple[int, ...]
    part: str = ""


def of_classifier(timed: Timed, asked: BenchSpec) -> Heat:
    """Everything is given images."""
    size = timed.bundle.read(Bundle.load).identity.preprocess.input_size
    return Heat(subjects=subjects(timed, asked), size=size, batch=asked.batch)


def subjects(timed: Timed, asked: BenchSpec) -> list[Subject]:
    """Twins first, engines before graphs, then graphs and engines of the run, then what is not ours."""
    graph = timed.stages.float_graph(timed.model)
    twins = [
        (name, timed.out.twin.engine(name) / MODEL_ENGINE) for name in timed.targets if timed.out.twin.has_engine(name)
    ]
    found = [
        *(Subject(name=f"{name} engine in float16", takes="engine", role="twin", path=path) for name, path in twins),
        Subject(name=TWIN, takes="graph", role="twin", path=graph.folder / "model.onnx"),
        Subject(name=TWIN, takes="module", role="twin", module=lambda: copy.deepcopy(timed.model.model)),
    ]
    for name in timed.targets:
        found += of_target(timed.out, name)
    if asked.against is not None:
        path = Path(asked.against)
        on = (*ON_ONNXRUNTIME, *asked.also)
        if path.suffix == ".engine":
            found.append(Subject(name=path.name, takes="engine", role="foreign", path=path))
        else:
            found.append(Subject(name=path.name, takes="graph", role="foreign", path=path, runs_on=on))
    return found


def of_target(out: OutputFolder, unit: str, *, n_outputs: int = 1) -> list[Subject]:
    """The graph of a target, or of a TARGET/PART, and its engine where there is one."""
    name = unit.partition("/")[0]
    graph = Subject(
        name=unit, takes="graph", role="ours", path=out.graph(unit), runs_on=runs_on(name), n_outputs=n_outputs
    )
    if named(name).package is None or not out.has_engine(unit):
        return [graph]
    path = out.engine(unit) / MODEL_ENGINE
    return [graph, Subject(name=f"{unit} engine", takes="engine", role="ours", path=path, n_outputs=n_outputs)]


def runs_on(target: str) -> tuple[str, ...] | None:
    """The kinds of runner that a target's graph is meant for, None for all: one for TensorRT runs there alone."""
    return None if named(target).package is None else ("onnxruntime-tensorrt",)
