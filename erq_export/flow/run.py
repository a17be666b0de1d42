"""The whole chain: calibrate → export → build → validate; the only file that uses all rooms."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from erq_export import __version__
from erq_export.backends.tensorrt import Package
from erq_export.calibrate.budget import budget
from erq_export.calibrate.loop import calibrate
from erq_export.contract.bundle import Bundle, fingerprint
from erq_export.contract.errors import MachineError
from erq_export.contract.files import write_json, write_text
from erq_export.contract.output.folder import REPORTS, OutputFolder
from erq_export.contract.output.writing import Writing
from erq_export.contract.records import encode, plain_of
from erq_export.contract.targets import Target, deployable, named
from erq_export.data.calibration_set import calibration_set, check_enough
from erq_export.data.sources import calibration_source, validation_source
from erq_export.exporters.onnx.write import lowered, marker_graph, save, save_manifest
from erq_export.exporters.tensorrt import build as engine
from erq_export.flow.job import Job, RunRecord, absolute
from erq_export.flow.measure import Measured, measure, raise_gates
from erq_export.flow.meter import Meter
from erq_export.flow.ui import Ui
from erq_export.models.limits import check_attention
from erq_export.models.loading import load
from erq_export.models.rebuild import attention_shapes
from erq_export.validate.report.chart import draw
from erq_export.validate.report.markdown import markdown


@dataclass
class Run:
    """One run in progress: what was asked, where it goes, what it has cost so far."""

    job: Job
    path: Path
    ui: Ui
    writing: Writing
    meter: Meter = field(default_factory=Meter)

    @property
    def out(self) -> OutputFolder:
        return OutputFolder(self.path)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage that is shown, timed and metered; its cost is said when it ends well."""
        with self.ui.stage(name), self.meter.stage(name):
            yield
        cost = self.meter.stages[-1]
        self.ui.note(f"{name}: {cost.wall_s:.1f} s, peak memory {cost.peak_mib:.0f} MiB")


def run(job: Job, out: Path, ui: Ui, *, overwrite: bool = False) -> dict[str, Any]:
    """Calibrate, export, build and validate; returns the report, which also lies in the output folder.

    Every ErqError is raised before the work that it would waste, gates after the report is written.
    """
    folder, targets = OutputFolder(out), deployable(job.deploy.targets)
    with folder.begin(overwrite=overwrite, planned=folder.planned(targets), job=plain_of(job)) as writing:
        return _run(Run(job, out, ui, writing))


def _run(it: Run) -> dict[str, Any]:
    job, ui = it.job, it.ui
    images = calibration_source(job.model.name, job.data)
    check_enough(images, job.data.calib)
    held_out = validation_source(job.model.name, job.data)
    device, asked = device_named(job.device), job.quantization
    with it.stage("load"):
        loaded = load(job.model, seed=job.data.seed)
        if asked.attention != "fp16":
            check_attention(loaded.family.attention(loaded.model), job.deploy.targets, asked.attention)
        data = calibration_set(images, loaded.identity.preprocess, n=job.data.calib, seed=job.data.seed)
    ui.note(budget(loaded, job.data.calib, job.options).says())
    with it.stage("calibrate"):
        bundle = calibrate(loaded, data, asked, device=device, progress=ui.progress)
        it.writing.place("bundle", bundle.save)
        it.writing.write("run.json", encode(RunRecord(erq_export=__version__, job=absolute(job))))
    del loaded
    if targets := deployable(job.deploy.targets):
        export(it, bundle, targets)
        build_engines(it, targets)
    return conclude(it, bundle, measure(job, it.path, bundle, images, held_out, data.pixels, device, ui, it.stage))


def build(job: Job, out: Path, ui: Ui, *, targets: Sequence[str]) -> None:
    """The graphs and engines of a finished calibration, again or for further targets.

    SpecError where a target lacks the bundle's int8 attention, EngineError where a claim is broken.
    """
    folder = OutputFolder(out)
    bundle = Bundle.load(folder.bundle)
    if bundle.operands:
        check_attention(attention_shapes(bundle), targets)
    with folder.resume(planned=folder.planned_for(targets)) as writing:
        it = Run(job, out, ui, writing)
        export(it, bundle, targets)
        records = build_engines(it, targets)
    raise_gates(it.path, engine_problems=[p for r in records.values() for p in r["problems"]])


def validate(job: Job, out: Path, ui: Ui) -> dict[str, Any]:
    """Measure a run again from its artifacts; returns and writes the report."""
    with OutputFolder(out).resume(planned=REPORTS) as writing:
        return _validate(Run(job, out, ui, writing))


def _validate(it: Run) -> dict[str, Any]:
    job, ui, bundle = it.job, it.ui, Bundle.load(it.out.bundle)
    images = calibration_source(job.model.name, job.data)
    held_out = validation_source(job.model.name, job.data)
    data = calibration_set(images, bundle.identity.preprocess, n=job.data.calib, seed=job.data.seed)
    device = device_named(job.device)
    return conclude(it, bundle, measure(job, it.path, bundle, images, held_out, data.pixels, device, ui, it.stage))


def export(it: Run, bundle: Bundle, targets: Sequence[str]) -> None:
    """Trace once, lower for every target: OUT/<target>/model.onnx and manifest.json, complete or not there."""
    identity, spec = bundle.identity, bundle.spec
    description = {
        "bundle_sha256": fingerprint(it.out.bundle),
        "model": identity.timm_name,
        "model_args": identity.model_args,
        "weights": identity.weights,
        "bits": str(spec.bits),
        "attention": spec.attention,
        "method": spec.method,
        "preprocess": identity.preprocess.to_json(),
    }
    with it.stage("export"):
        markers = marker_graph(bundle)
        for i, target in enumerate(targets):
            it.ui.progress(f"export {target}", i, len(targets))
            graph, manifest = lowered(markers, named(target), description, pack=it.job.deploy.pack)

            def fill(folder: Path, graph: Any = graph, manifest: dict[str, Any] = manifest) -> None:
                save(graph, folder / "model.onnx")
                save_manifest(manifest, folder / "manifest.json")

            it.writing.place(target, fill)


def build_engines(it: Run, targets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """An engine for every target that has a package: OUT/<target>/engine. Returns their records."""
    records = {}
    for target in (named(name) for name in targets):
        if target.package is None:
            continue

        def on_progress(phase: str, done: int, total: int) -> bool:
            it.ui.progress(phase, done, total)
            return True

        def fill(folder: Path, target: Target = target) -> dict[str, Any]:
            return engine.build(
                it.out.graph(target.name),
                it.out.read_manifest(target.name),
                folder,
                package=cast(Package, target.package),
                compute_capabilities=it.job.deploy.capability if target.ahead_of_time else (),
                batch=it.job.deploy.batch,
                on_progress=on_progress,
            )

        with it.stage(f"build {target.name}"):
            records[target.name] = it.writing.place(f"{target.name}/engine", fill)
    return records


def conclude(it: Run, bundle: Bundle, measured: Measured) -> dict[str, Any]:
    """Write report.json and report.md, then let the gates speak."""
    packages = ("torch", "timm", "onnx", "onnxruntime-gpu")
    description = {
        "erq_export": __version__,
        "bundle_sha256": fingerprint(it.out.bundle),
        "model": plain_of(bundle.identity),
        "quant": plain_of(bundle.spec) | {"targets": list(it.job.deploy.targets)},
        "data": {k: v for k, v in plain_of(bundle.data).items() if k != "names"},
        "machine": {
            "python": platform.python_version(),
            "processor": measured.processor,
            "threads": torch.get_num_threads(),
            "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            **{name: version(name) for name in packages},
        },
        "stages": it.meter.to_json(),
    }
    report = measured.report(description, bundle)

    def fill(folder: Path) -> None:
        written = OutputFolder(folder).report
        write_json(written, report)
        write_text(written.with_suffix(".md"), markdown(report))
        draw(report, written.with_suffix(".svg"))

    it.writing.place("", fill)
    it.writing.record(complete=True, timings=it.meter.stages)
    raise_gates(
        it.path,
        engine_problems=measured.engine_problems(),
        parity_problems=measured.parity_problems(),
        accuracy_problems=measured.accuracy_problems(),
    )
    return report


def device_named(name: str) -> torch.device:
    """auto: the GPU where there is one. MachineError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise MachineError(f"--device {name}: torch knows no such device", fix="--device cpu, or cuda") from e
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs", fix="--device cpu")
    return device
