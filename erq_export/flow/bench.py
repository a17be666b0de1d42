"""`bench`: what a run made, timed in everything that this machine can run it in, beside its float twin."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

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
from erq_export.contract.targets import deployable
from erq_export.exporters.lint.load import parse
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection.asked import is_detector
from erq_export.flow.detection.heats import check_asked, left_out, of_detector
from erq_export.flow.detection.units import units
from erq_export.flow.engines import checked, engine_runner
from erq_export.flow.heats import Heat, Timed, of_classifier
from erq_export.flow.job import Job
from erq_export.flow.pages import write_bench, write_pages
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.flow.work import Course
from erq_export.models.detectors.family import FAMILY as DETECTOR
from erq_export.models.detectors.loading import load_asked
from erq_export.models.loading import load
from erq_export.validate.bench import Entry, contest, enter, gate, raise_gate
from erq_export.validate.contestants import KINDS, Kind, Subject, check_gpu
from erq_export.validate.report.bench_words import notes

PACKAGES = ("torch", "onnxruntime-gpu", "openvino", "tensorrt-rtx-cu13", "tensorrt")


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
    folder, course, detector = OutputFolder(out), Course(ui), is_detector(job.model.name)
    Bundle.load(folder.bundle)
    if detector:
        check_asked(job.model.name, asked)
    check_against(asked)
    every = units(job.model, job.deploy.targets) if detector else deployable(job.deploy.targets)
    targets = [name for name in every if folder.target(name).is_dir()]
    if not targets or (detector and set(left_out(targets)) == set(targets)):
        raise SpecError(
            f"{out} holds no graph that could be timed", fix=f"erq-export build {out}, or a run with --to onnx"
        )
    with folder.resume(planned=(*BENCHES, *REPORTS)) as writing:
        folder.check_as_written(writing.manifest, targets)
        with course.stage("load"):
            model = (load_asked if detector else load)(job.model, seed=job.data.seed)
        device = torch.device("cpu")
        timed = Timed(
            stages=Stages(store=store, ui=ui, device=device),
            model=model,
            bundle=Artifact.at(folder.bundle),
            out=folder,
            targets=targets,
            missing=[name for name in every if name not in targets],
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
    """Every line of every heat and device: on the CPU for each number of threads, on a GPU once."""
    bundle, detector = timed.bundle.read(Bundle.load), timed.model.family is DETECTOR
    heats = of_detector(timed) if detector else [of_classifier(timed, asked)]
    every = {**kinds, "engine": engine_kind(asked)}
    entries = [enter(heat.subjects, asked.also, kinds=every) for heat in heats]
    before, threads_before, lines = state(), torch.get_num_threads(), list[Line]()
    try:
        for heat, entry in zip(heats, entries, strict=True):
            lines += _lines(heat, entry, asked, ui)
    finally:
        torch.set_num_threads(threads_before)
    skipped = {name: why for entry in entries for name, why in entry.skipped.items()}
    skipped |= dict.fromkeys(timed.missing, "its graph is not in the folder")
    skipped |= left_out(timed.targets) if detector else {}
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
        parts={heat.part: heat.batch[0] for heat in heats if heat.part},
        skipped=skipped,
        notes=(),
        problems=() if asked.require_speedup is None else tuple(gate(lines, asked.require_speedup)),
    )
    return notes(found)


def _lines(heat: Heat, entry: Entry, asked: BenchSpec, ui: Ui) -> Iterator[Line]:
    """Those of one heat."""
    own = structs.replace(asked, batch=heat.batch)

    def progress(what: str, done: int, of: int) -> None:
        ui.progress(f"{heat.part}: {what}" if heat.part else what, done, of)

    for device, entrants in entry.by_device.items():
        for threads in (asked.threads or (len(cores()),)) if device == "cpu" else (0,):
            yield from contest(entrants, own, heat.size, threads=threads, progress=progress)


def engine_kind(asked: BenchSpec) -> Kind:
    """What runs engines, each by its record: on the GPU that it was built for. Not yet run on a GPU."""

    def trusted(subject: Subject) -> bool:
        return asked.trust_engine and subject.role == "foreign"

    return Kind(
        takes="engine",
        device="cuda",
        check=check_gpu,
        fits=lambda s: checked(s.file, trust=trusted(s)) and None,
        make=lambda s, _, name: engine_runner(s.file, trust=trusted(s), name=name, n_outputs=s.n_outputs),
        always=True,
    )


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
