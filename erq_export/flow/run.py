"""The whole chain: calibrate → export → build → validate, each stage over the store, each result into the run's folder."""

import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from erq_export import __version__
from erq_export.backends.machine import processor, versions
from erq_export.backends.ranks import Ranks
from erq_export.contract.bundle import Bundle
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.files import write_bytes
from erq_export.contract.output.folder import BENCHES, REPORTS, OutputFolder
from erq_export.contract.output.writing import Writing
from erq_export.contract.records import encode, plain_of
from erq_export.contract.report import Report
from erq_export.contract.spec import DeploySpec
from erq_export.contract.targets import deployable, named
from erq_export.flow import bench
from erq_export.flow.artifacts import Artifact
from erq_export.flow.begin import NOTHING_OWN, Own, begin, check_cost
from erq_export.flow.choose import settled
from erq_export.flow.helping import helped
from erq_export.flow.job import Job, RunRecord, absolute
from erq_export.flow.measure import Made, measure, raise_gates
from erq_export.flow.pages import write_pages
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.flow.work import Course, Work

PACKAGES = ("torch", "timm", "numpy", "numba", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "tensorrt-rtx-cu13")


def run(
    job: Job,
    out: Path,
    ui: Ui,
    *,
    store: Store,
    overwrite: bool = False,
    own: Own = NOTHING_OWN,
    command: Sequence[str] = (),
) -> Report:
    """Calibrate, export, build and validate; returns the report, which also lies in the output folder.

    Every ErqError is raised before the work that it would waste, gates after the report is written. Under torchrun the first
    process does it, the others share in the accuracy of held-out images.
    """

    def first(ranks: Ranks | None) -> Report:
        return _run(job, out, ui, store=store, overwrite=overwrite, own=own, command=command, ranks=ranks)

    return helped(job, own, first)


def _run(
    job: Job,
    out: Path,
    ui: Ui,
    *,
    store: Store,
    overwrite: bool,
    own: Own,
    command: Sequence[str],
    ranks: Ranks | None,
) -> Report:
    folder, targets = OutputFolder(out), deployable(job.deploy.targets)
    planned = folder.planned(targets)
    folder.check(overwrite=overwrite, planned=planned, job=plain_of(job))
    work = begin(job, ui, store, own, ranks=ranks)
    check_cost(work)
    with folder.begin(overwrite=overwrite, planned=planned, command=command, job=plain_of(job)) as writing:
        writing.record(versions=version_of_packages(), machine=machine(), **inputs(work))
        work = settled(work)
        with work.stage("calibrate"):
            bundle = work.stages.bundle(work.model, work.calibration_images(job.data.seed), work.job.quantization)
            place(writing, "bundle", bundle)
            writing.write("run.json", encode(RunRecord(erq_export=__version__, job=absolute(work.job))))
        made = make(work.course, work.stages, job.deploy, writing, bundle, targets)
        return conclude(work, folder, writing, made, chosen=None if work.job == job else work.job)


def make(
    course: Course,
    stages: Stages,
    deploy: DeploySpec,
    writing: Writing,
    bundle: Artifact,
    targets: Sequence[str],
    *,
    engine: EngineSpec | None = None,
    timings: Mapping[str, bytes] = MappingProxyType({}),
) -> Made:
    """Graphs and engines for these targets, in the store and in the run's folder.

    engine: what is asked of engines, where that is not what the run asked.  timings: by target, of engines built before.
    """
    graphs, engines = {}, {}
    if targets:
        with course.stage("export"):
            for i, name in enumerate(targets):
                course.ui.progress(f"export {name}", i, len(targets))
                graphs[name] = stages.graph(bundle, name, deploy.pack)
                place(writing, name, graphs[name])
    for target in (named(name) for name in targets if named(name).package is not None):
        with course.stage(f"build {target.name}"):
            graph = graphs[target.name]
            asked, timed = engine or EngineSpec.of(deploy), timings.get(target.name)
            engines[target.name] = stages.engine(graph, target, asked, timings=timed)
            place(writing, f"{target.name}/engine", engines[target.name])
    return Made(bundle=bundle, graphs=graphs, engines=engines)


def validate(job: Job, out: Path, ui: Ui, *, store: Store) -> Report:
    """Measure a run again from its artifacts; returns and writes the report.

    DataError where a graph, its manifest or an engine's record is damaged or not what the run wrote: nothing is measured.
    Under torchrun as `run`.
    """
    return helped(job, NOTHING_OWN, lambda ranks: _validate(job, out, ui, store=store, ranks=ranks))


def _validate(job: Job, out: Path, ui: Ui, *, store: Store, ranks: Ranks | None) -> Report:
    folder = OutputFolder(out)
    Bundle.load(folder.bundle)
    targets = deployable(job.deploy.targets)
    made = Made(
        bundle=Artifact.at(folder.bundle),
        graphs={name: Artifact.at(folder.target(name)) for name in targets},
        engines={name: Artifact.at(folder.engine(name)) for name in targets if folder.has_engine(name)},
    )
    with folder.resume(planned=(*REPORTS, *BENCHES)) as writing:
        folder.check_as_written(writing.manifest, targets)
        return conclude(begin(job, ui, store, ranks=ranks), folder, writing, made)


def conclude(work: Work, folder: OutputFolder, writing: Writing, made: Made, *, chosen: Job | None = None) -> Report:
    """Measure, write report.json and its pages, then let the gates speak.

    chosen: the job with its bits chosen, where a budget was given: what the manifest of the finished run says, so that it is
    made again without a choice. Until then it holds what was asked, by which a run that was stopped is known.
    """
    measured = measure(work, folder.path, made)
    bundle, costs = made.bundle.read(Bundle.load), work.course.meter.stages
    report = measured.report(made.bundle, bundle, costs, machine=machine(), versions=version_of_packages())

    timed = measured.bench or bench.kept(folder, made.bundle.content)

    def fill(staging: Path) -> None:
        write_bytes(OutputFolder(staging).report, encode(report))
        write_pages(staging, report, timed, writing.manifest.command)

    writing.place("", fill)
    writing.record(complete=True, timings=work.course.meter.stages, **({"job": plain_of(chosen)} if chosen else {}))
    raise_gates(
        folder.path,
        engine_problems=measured.engine_problems(),
        parity_problems=measured.parity_problems(),
        accuracy_problems=measured.accuracy_problems(),
    )
    return report


def inputs(work: Work) -> dict[str, dict[str, str]]:
    """What goes in, as the manifest has it: hashes of the weights and of the images."""
    images = {"calibration": work.calibration_images(work.job.data.seed).sha256}
    if work.held_out is not None:
        images["held out"] = work.held_out.fingerprint
    return {"weights": {work.model.identity.timm_name: work.model.fingerprint}, "images": images}


def version_of_packages() -> dict[str, str]:
    """The packages that a run's bytes may depend on."""
    return versions(*PACKAGES)


def machine() -> dict[str, str]:
    """Where it ran."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "gpu": ", ".join(gpus) or "none",
    }


def place(writing: Writing, name: str, artifact: Artifact) -> None:
    """The artifact's files as OUT/`name`, and its hash in the manifest."""

    def copy(source: Path, folder: Path) -> None:
        for path in source.iterdir():
            if path.is_file():
                shutil.copyfile(path, folder / path.name)

    writing.place(name, lambda folder: artifact.read(lambda source: copy(source, folder)))
    writing.record(artifacts={**writing.manifest.artifacts, name: artifact.content})
