"""`bench`: what a run made, timed in everything that this machine can run it in, beside its float twin."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from erq_export import __version__
from erq_export.backends.machine import cores, cpu_mhz, load_average, processor, sums_may_saturate, versions
from erq_export.backends.nvml import gpu_states
from erq_export.contract.bench import BENCH, Bench, BenchSpec, Line, State
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError, SpecError
from erq_export.contract.output.folder import BENCHES, REPORTS, OutputFolder
from erq_export.contract.records import hints, read
from erq_export.contract.registry import unknown
from erq_export.contract.report import Report
from erq_export.contract.targets import deployable, named
from erq_export.exporters.lint.load import parse
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection.asked import require_classifier
from erq_export.flow.engines import MODEL_ENGINE, checked, engine_runner
from erq_export.flow.job import Job
from erq_export.flow.pages import write_bench, write_pages
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.flow.work import Course
from erq_export.models.loading import Loaded, load
from erq_export.validate.bench import contest, enter, gate, raise_gate
from erq_export.validate.contestants import KINDS, Kind, Subject, check_gpu
from erq_export.validate.report.bench_words import notes

PACKAGES = ("torch", "onnxruntime-gpu", "openvino", "tensorrt-rtx-cu13", "tensorrt")
TWIN = "float32"
ON_ONNXRUNTIME = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What can be timed of a run: its float model, its bundle and its folder."""

    stages: Stages
    model: Loaded
    bundle: Artifact
    out: OutputFolder
    targets: Sequence[str]


def bench(
    job: Job,
    out: Path,
    ui: Ui,
    *,
    store: Store,
    asked: BenchSpec,
    kinds: Mapping[str, Kind] = KINDS,
    show: Callable[[Bench], None] = lambda _: None,
) -> Bench:
    """Time the run that a folder holds; writes bench.json and bench.svg there, and the report's pages again where there is one.

    SpecError for a run without graphs, DataError where a graph is not what the run wrote, or the foreign one cannot be
    used, MachineError for a runner that was asked for and is not here; SpeedError once all is written and shown.
    """
    require_classifier(job.model.name, "bench")
    folder, course = OutputFolder(out), Course(ui)
    Bundle.load(folder.bundle)
    check_against(asked)
    targets = [name for name in deployable(job.deploy.targets) if folder.target(name).is_dir()]
    if not targets:
        raise SpecError(
            f"{out} holds no graph that could be timed", fix=f"erq-export build {out}, or a run with --to onnx"
        )
    with folder.resume(planned=(*BENCHES, *REPORTS)) as writing:
        folder.check_as_written(writing.manifest, targets)
        with course.stage("load"):
            model = load(job.model, seed=job.data.seed)
        device = torch.device("cpu")
        timed = Timed(
            stages=Stages(store=store, ui=ui, device=device),
            model=model,
            bundle=Artifact.at(folder.bundle),
            out=folder,
            targets=targets,
        )
        with course.stage("bench"):
            found = measure(timed, ui, asked, kinds=kinds)
        report, command = report_in(folder), writing.manifest.command
        writing.place("", lambda staging: fill(staging, found, report, command))
    show(found)
    raise_gate(found.problems)
    return found


def spec(asked: Mapping[str, Any]) -> BenchSpec:
    """The spec of these fields; SpecError for a name that it does not have."""
    if surplus := [name for name in asked if name not in hints(BenchSpec)]:
        raise unknown("option of bench", surplus[0], hints(BenchSpec))
    return BenchSpec(**asked)


def measure(timed: Timed, ui: Ui, asked: BenchSpec, *, kinds: Mapping[str, Kind] = KINDS) -> Bench:
    """Every line of every device: on the CPU for each number of threads, on a GPU once."""
    bundle = timed.bundle.read(Bundle.load)
    size = bundle.identity.preprocess.input_size
    entry = enter(subjects(timed, asked), asked.also, kinds={**kinds, "engine": engine_kind(asked)})
    before, threads_before, lines = state(), torch.get_num_threads(), list[Line]()
    try:
        for device, entrants in entry.by_device.items():
            for threads in (asked.threads or (len(cores()),)) if device == "cpu" else (0,):
                lines += contest(entrants, asked, size, threads=threads, progress=ui.progress)
    finally:
        torch.set_num_threads(threads_before)
    found = Bench(
        erq_export=__version__,
        bundle_sha256=timed.bundle.content,
        model=bundle.identity.timm_name,
        bits=bundle.spec.bits,
        attention=bundle.spec.attention,
        asked=asked,
        processor=processor(),
        cores=cores(),
        vnni=not sums_may_saturate(),
        versions=versions(*PACKAGES),
        before=before,
        after=state(),
        lines=tuple(lines),
        skipped=entry.skipped,
        notes=(),
        problems=() if asked.require_speedup is None else tuple(gate(lines, asked.require_speedup)),
    )
    return notes(found)


def engine_kind(asked: BenchSpec) -> Kind:
    """What runs engines, each by its record: on the GPU that it was built for. Not yet run on a GPU."""

    def trusted(subject: Subject) -> bool:
        return asked.trust_engine and subject.role == "foreign"

    return Kind(
        takes="engine",
        device="cuda",
        check=check_gpu,
        fits=lambda s: checked(s.file, trust=trusted(s)) and None,
        make=lambda s, _, name: engine_runner(s.file, trust=trusted(s), name=name),
        always=True,
    )


def runs_on(target: str) -> tuple[str, ...] | None:
    """The kinds of runner that a target's graph is meant for, None for all: one for TensorRT runs there alone."""
    return None if named(target).package is None else ("onnxruntime-tensorrt",)


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
        path, on = timed.out.graph(name), runs_on(name)
        found.append(Subject(name=name, takes="graph", role="ours", path=path, runs_on=on))
        if named(name).package is not None and timed.out.has_engine(name):
            path = timed.out.engine(name) / MODEL_ENGINE
            found.append(Subject(name=f"{name} engine", takes="engine", role="ours", path=path))
    if asked.against is not None:
        path = Path(asked.against)
        on = (*ON_ONNXRUNTIME, *asked.also)
        if path.suffix == ".engine":
            found.append(Subject(name=path.name, takes="engine", role="foreign", path=path))
        else:
            found.append(Subject(name=path.name, takes="graph", role="foreign", path=path, runs_on=on))
    return found


def check_against(asked: BenchSpec) -> None:
    """DataError for a file that is no graph, SpecError for another ending; for an engine what `flow.engines` refuses. Executes
    nothing."""
    against = asked.against
    if against is None:
        return
    path = Path(against)
    if path.suffix == ".onnx":
        parse(path)
    elif path.suffix != ".engine":
        raise SpecError(f"--against {against!r} is no .onnx and no .engine", fix="--against FILE.onnx or FILE.engine")
    elif not path.is_file():
        raise DataError(f"there is no engine {path}", fix="--against with the name of an engine's file")
    else:
        checked(path, trust=asked.trust_engine)


def state() -> State:
    """The machine now."""
    return State(cpu_mhz=cpu_mhz(), load=load_average(), gpus=gpu_states())


def fill(staging: Path, found: Bench, report: Report | None, command: Sequence[str]) -> None:
    """Write bench.json, its picture, and the report's pages with its section."""
    if report is None:
        write_bench(staging, found)
    else:
        write_pages(staging, report, found, command)


def report_in(folder: OutputFolder) -> Report | None:
    """The report of the run, if it has one that this version reads."""
    return read(Report, folder.report) if folder.report.is_file() else None


def kept(folder: OutputFolder, bundle_sha256: str) -> Bench | None:
    """An earlier measurement of the same bundle; DataError where the file is damaged."""
    path = folder.path / BENCH
    found = read(Bench, path) if path.is_file() else None
    return found if found is not None and found.bundle_sha256 == bundle_sha256 else None
