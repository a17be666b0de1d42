"""The whole chain: calibrate → export → build → validate, each stage over the store, each result into the run's folder."""

import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from erq_export import __version__
from erq_export.backends.device import device_named
from erq_export.backends.machine import processor
from erq_export.calibrate.budget import budget
from erq_export.contract.bundle import Bundle
from erq_export.contract.files import OutputFolder, staged, write_text
from erq_export.contract.records import encode
from erq_export.contract.report import Machine, Report
from erq_export.contract.spec import DeploySpec
from erq_export.contract.targets import deployable, named
from erq_export.data.calibration_set import check_enough
from erq_export.data.sources import calibration_source, validation_source
from erq_export.flow.artifacts import Artifact
from erq_export.flow.job import Job, RunRecord, absolute
from erq_export.flow.measure import Made, measure, raise_gates
from erq_export.flow.stages import Stages, read_engine
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.flow.work import Course, Work
from erq_export.models.limits import check_attention
from erq_export.models.loading import load
from erq_export.models.rebuild import attention_shapes
from erq_export.validate.report.chart import draw
from erq_export.validate.report.markdown import markdown


def run(job: Job, out: Path, ui: Ui, *, store: Store, overwrite: bool = False) -> Report:
    """Calibrate, export, build and validate; returns the report, which also lies in the output folder.

    Every ErqError is raised before the work that it would waste, gates after the report is written.
    """
    folder = OutputFolder(out)
    folder.check(overwrite=overwrite)
    work = begin(job, ui, store)
    ui.note(budget(work.model, job.data.calib, job.options).says())
    with work.stage("calibrate"):
        bundle = work.stages.bundle(work.model, work.calibration_images(job.data.seed), job.quantization)
        with staged(folder.path) as new:
            copy(bundle, OutputFolder(new).bundle)
            OutputFolder(new).run.write_bytes(encode(RunRecord(erq_export=__version__, job=absolute(job))))
    made = make(work.course, work.stages, job.deploy, folder, bundle, deployable(job.deploy.targets))
    return conclude(work, folder, made)


def begin(job: Job, ui: Ui, store: Store) -> Work:
    """The job's images and model, looked at before anything is computed."""
    source = calibration_source(job.model.name, job.data)
    check_enough(source, job.data.calib)
    val = validation_source(job.model.name, job.data)
    device, course = device_named(job.device), Course(ui)
    with course.stage("load"):
        model = load(job.model, seed=job.data.seed)
        if job.deploy.precision != "fp16":
            check_attention(model.family.attention(model.model), job.deploy.targets, job.deploy.precision)
        work = Work(
            job=job,
            course=course,
            stages=Stages(store=store, ui=ui, device=device),
            model=model,
            source=source,
            val=val,
        )
        work.calibration_images(job.data.seed)
    return work


def make(
    course: Course, stages: Stages, deploy: DeploySpec, folder: OutputFolder, bundle: Artifact, targets: Sequence[str]
) -> Made:
    """Graphs and engines for these targets, in the store and in the run's folder."""
    graphs, engines = {}, {}
    if targets:
        with course.stage("export"):
            for i, name in enumerate(targets):
                course.ui.progress(f"export {name}", i, len(targets))
                graphs[name] = stages.graph(bundle, name, deploy.pack)
                copy(graphs[name], folder.target(name))
    for target in (named(name) for name in targets if named(name).package is not None):
        with course.stage(f"build {target.name}"):
            graph = graphs[target.name]
            engines[target.name] = stages.engine(graph, target, capability=deploy.capability, batch=deploy.batch)
            copy(engines[target.name], folder.engine(target.name))
    return Made(bundle=bundle, graphs=graphs, engines=engines)


def build(job: Job, out: Path, ui: Ui, *, store: Store, targets: Sequence[str]) -> None:
    """The graphs and engines of a finished calibration, again or for further targets.

    SpecError where a target lacks the bundle's int8 attention, EngineError where a claim is broken.
    """
    folder = OutputFolder(out)
    bundle = Bundle.load(folder.bundle)
    if bundle.operands:
        check_attention(attention_shapes(bundle), targets)
    stages = Stages(store=store, ui=ui, device=device_named(job.device))
    made = make(Course(ui), stages, job.deploy, folder, Artifact.at(folder.bundle), targets)
    raise_gates(folder.path, engine_problems=[p for e in made.engines.values() for p in read_engine(e).problems])


def validate(job: Job, out: Path, ui: Ui, *, store: Store) -> Report:
    """Measure a run again from its artifacts; returns and writes the report."""
    folder = OutputFolder(out)
    Bundle.load(folder.bundle)
    targets = deployable(job.deploy.targets)
    made = Made(
        bundle=Artifact.at(folder.bundle),
        graphs={name: Artifact.at(folder.target(name)) for name in targets},
        engines={name: Artifact.at(folder.engine(name)) for name in targets if folder.has_engine(name)},
    )
    return conclude(begin(job, ui, store), folder, made)


def conclude(work: Work, folder: OutputFolder, made: Made) -> Report:
    """Measure, write report.json and report.md, then let the gates speak."""
    measured = measure(work, folder.path, made)
    bundle = Bundle.load(made.bundle.folder)
    report = measured.report(made.bundle, bundle, machine(), work.course.meter.stages)
    write_text(folder.report, encode(report).decode())
    write_text(folder.report.with_suffix(".md"), markdown(report))
    draw(report, folder.report.with_suffix(".svg"))
    raise_gates(
        folder.path,
        engine_problems=measured.engine_problems(),
        parity_problems=measured.parity_problems(),
        accuracy_problems=measured.accuracy_problems(),
    )
    return report


def machine() -> Machine:
    """Where this process runs, and with which packages."""
    packages = ("torch", "timm", "onnx", "onnxruntime-gpu")
    return Machine(
        python=platform.python_version(),
        processor=processor(),
        threads=torch.get_num_threads(),
        gpu=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        packages={name: version(name) for name in packages},
    )


def copy(artifact: Artifact, folder: Path) -> None:
    """The artifact's files, in a folder of the run: whole or not there; sub-folders that others put there stay."""
    with staged(folder) as new:
        for path in artifact.folder.iterdir():
            shutil.copyfile(path, new / path.name)
        if folder.is_dir():
            for inner in folder.iterdir():
                if inner.is_dir():
                    shutil.copytree(inner, new / inner.name)
