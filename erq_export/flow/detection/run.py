"""The whole chain of a detector: calibrate → export → build → validate, into the same folder that a classifier's run has."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import structs

from erq_export import __version__
from erq_export.backends.device import device_named
from erq_export.contract.bench import Bench, BenchSpec
from erq_export.contract.bundle import Bundle
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.files import write_bytes
from erq_export.contract.manifest import Claims, GraphManifest, Sizes
from erq_export.contract.output.folder import BENCHES, REPORTS, OutputFolder
from erq_export.contract.output.writing import Writing
from erq_export.contract.records import encode, plain_of
from erq_export.contract.report import ImagesUsed, Layer, PartReport, Report, TargetReport
from erq_export.contract.run_manifest import RunManifest
from erq_export.contract.targets import deployable, named
from erq_export.flow import bench
from erq_export.flow.artifacts import Artifact, read_engine, read_manifest
from erq_export.flow.detection.make import make
from erq_export.flow.detection.measure import Outcome, broken, measure
from erq_export.flow.detection.units import WHOLE, split, units
from erq_export.flow.detection.work import DetectorWork, begin, check_something_is_found
from erq_export.flow.heats import Timed
from erq_export.flow.job import Job, RunRecord, absolute, read_run
from erq_export.flow.measure import Made, raise_gates
from erq_export.flow.pages import write_pages
from erq_export.flow.run import machine, place, version_of_packages
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.flow.work import Course
from erq_export.validate.report.coverage import INTEGER
from erq_export.validate.report.words import headline


def run(job: Job, out: Path, ui: Ui, *, store: Store, overwrite: bool = False, command: Sequence[str] = ()) -> Report:
    """As `flow.run.run`, of a detector: OUT/TARGET/PART for every part, OUT/onnx/detector for the whole."""
    folder = OutputFolder(out)
    every = units(job.model, job.deploy.targets)
    planned = folder.planned(every)
    folder.check(overwrite=overwrite, planned=planned, job=plain_of(job))
    work = begin(job, ui, store)
    with folder.begin(overwrite=overwrite, planned=planned, command=command, job=plain_of(job)) as writing:
        return _conclude(work, folder, writing, _made(work, writing, every))


def made_again(job: Job, folder: OutputFolder, ui: Ui, store: Store) -> tuple[RunManifest, dict[str, dict[str, str]]]:
    """Bundle, graphs and engines of a job, and nothing that is measured: the manifest of what came of it, and what went in."""
    every = units(job.model, job.deploy.targets)
    work = begin(job, ui, store)
    with folder.begin(planned=folder.planned(every), job=plain_of(job)) as writing:
        _made(work, writing, every)
        return writing.manifest, _inputs(work)


def _made(work: DetectorWork, writing: Writing, every: tuple[str, ...]) -> Made:
    """Calibrate, export and build."""
    job = work.job
    writing.record(versions=version_of_packages(), machine=machine(), **_inputs(work))
    if not work.stages.has_bundle(work.model, work.calibration_images(job.data.seed), job.quantization):
        check_something_is_found(work)
    with work.stage("calibrate"):
        bundle = work.stages.bundle(work.model, work.calibration_images(job.data.seed), job.quantization)
        place(writing, "bundle", bundle)
        writing.write("run.json", encode(RunRecord(erq_export=__version__, job=absolute(job))))
    return make(work.course, work.stages, job.deploy, writing, bundle, every)


def validate(job: Job, out: Path, ui: Ui, *, store: Store) -> Report:
    """Measure a run again from its artifacts. DataError where a graph, its manifest or an engine's record is damaged."""
    folder = OutputFolder(out)
    Bundle.load(folder.bundle)
    every = units(job.model, job.deploy.targets)
    made = Made(
        bundle=Artifact.at(folder.bundle),
        graphs={unit: Artifact.at(folder.target(unit)) for unit in every},
        engines={unit: Artifact.at(folder.engine(unit)) for unit in every if folder.has_engine(unit)},
    )
    with folder.resume(planned=(*REPORTS, *BENCHES)) as writing:
        folder.check_as_written(writing.manifest, every)
        work = begin(job, ui, store, calibrated=read_run(out).data)
        return _conclude(work, folder, writing, made)


def build(
    job: Job, out: Path, ui: Ui, *, store: Store, targets: Sequence[str], engine: EngineSpec | None = None
) -> None:
    """Graphs and engines of a run again, or for further targets. EngineError where a claim is broken."""
    folder = OutputFolder(out)
    Bundle.load(folder.bundle)
    every = units(job.model, targets)
    stages = Stages(store=store, ui=ui, device=device_named(job.device))
    with folder.resume(planned=folder.planned_for(every)) as writing:
        made = make(Course(ui), stages, job.deploy, writing, Artifact.at(folder.bundle), every, engine=engine)
    raise_gates(folder.path, engine_problems=[p for e in made.engines.values() for p in read_engine(e).problems])


def _inputs(work: DetectorWork) -> dict[str, dict[str, str]]:
    """What goes in, as the manifest has it."""
    images = {"calibration": work.calibration_images(work.job.data.seed).fingerprint.pixels_sha256}
    if work.measured_on is not None:
        images["held out"] = work.measured_on.fingerprint
    return {"weights": {work.model.identity.timm_name: work.model.fingerprint}, "images": images}


def _conclude(work: DetectorWork, folder: OutputFolder, writing: Writing, made: Made) -> Report:
    """Measure, write report.json and its pages, then let the gates speak."""
    outcome = measure(work, made)
    report = _report(work, made, outcome)
    _write(writing, report, bench.kept(folder, made.bundle.content))
    if work.job.evaluate.bench and made.graphs:
        _write(writing, report, _timed(work, folder, made))  # once more: what cannot be timed costs the speed alone
    writing.record(complete=True, timings=work.course.meter.stages)
    raise_gates(
        folder.path,
        engine_problems=[p for target in report.targets.values() for p in target.engine_problems],
        parity_problems=_of_parity(outcome),
        accuracy_problems=broken(work.job.evaluate, outcome.detection),
    )
    return report


def _write(writing: Writing, report: Report, timed: Bench | None) -> None:
    """report.json and its pages, with the section on speed where there is one."""

    def fill(staging: Path) -> None:
        write_bytes(OutputFolder(staging).report, encode(report))
        write_pages(staging, report, timed, writing.manifest.command)

    writing.place("", fill)


def _timed(work: DetectorWork, folder: OutputFolder, made: Made) -> Bench:
    """The parts, timed."""
    of = Timed(stages=work.stages, model=work.model, bundle=made.bundle, out=folder, targets=tuple(made.graphs))
    with work.stage("bench"):
        return bench.measure(of, work.ui, BenchSpec())


def _of_parity(outcome: Outcome) -> list[str]:
    parts = [(unit, found.problems()) for unit, found in outcome.parity.items()]
    wholes = [(unit, found.problems()) for unit, found in outcome.followed.items()]
    return [f"{unit}: {problem}" for unit, problems in (*parts, *wholes) for problem in problems]


def _report(work: DetectorWork, made: Made, outcome: Outcome) -> Report:
    bundle, job = made.bundle.read(Bundle.load), work.job
    targets = {name: _target(name, made, outcome) for name in deployable(job.deploy.targets)}
    engines = [f"{name}: {p}" for name, target in targets.items() for p in target.engine_problems]
    report = Report(
        erq_export=__version__,
        bundle_sha256=made.bundle.content,
        model=bundle.identity,
        quantization=bundle.spec,
        targets_asked=job.deploy.targets,
        data=ImagesUsed(n_images=bundle.data.n_images, pixels_sha256=bundle.data.pixels_sha256),
        machine=machine(),
        versions=version_of_packages(),
        stages=tuple(work.course.meter.stages),
        accuracy=None,
        comparison=(),
        price=(),
        targets=targets,
        latency=None,
        layers=tuple(
            Layer(path=path, w_bits=layer.w_bits, a_bits=layer.a_bits, statistics=bundle.statistics[path])
            for path, layer in bundle.layers.items()
        ),
        not_verified=(*outcome.not_run, *_not_compared(targets)),
        rotated=bundle.rotated,
        detection=outcome.detection,
        problems=(*engines, *_of_parity(outcome), *broken(job.evaluate, outcome.detection)),
    )
    return structs.replace(report, headline=headline(report))


def _not_compared(targets: Mapping[str, TargetReport]) -> Iterator[str]:
    """Parts that nothing reached, where others of the target were compared, and masks of a whole that found nothing."""
    for name, target in targets.items():
        for part, one in target.parts.items():
            if one.followed is not None and one.followed.n_found == 0:
                yield f"{name} {part}: nothing was found, so no mask of it was compared."
        unseen = [part for part, one in target.parts.items() if split(part)[0] != WHOLE and one.parity is None]
        if unseen and len(unseen) < len(target.parts):  # all of them: another target has the same graphs
            yield f"{name}: nothing reached {', '.join(unseen)} on the calibration picture, so it was not compared."


def _target(name: str, made: Made, outcome: Outcome) -> TargetReport:
    """What the parts of one target come to together. Whole graphs stand among them, and the body on further canvases: layers,
    attentions and tensors are counted once, bytes are those of every part's file. A layer is integer if it is on every canvas."""
    parts = {unit.partition("/")[2]: _part(unit, made, outcome) for unit in made.graphs if unit.startswith(f"{name}/")}
    own = {part: one for part, one in parts.items() if split(part)[0] != WHOLE}
    manifests = {part: read_manifest(made.graphs[f"{name}/{part}"]) for part in own}
    executed: dict[str, str] = {}
    for part, one in own.items():
        checked = outcome.parity.get(f"{name}/{part}")
        found = one.engine.precision if one.engine else {} if checked is None else checked.executed
        executed |= {path: how for path, how in found.items() if executed.get(path) in (None, *INTEGER)}
    once = {part: manifest for part, manifest in manifests.items() if split(part)[1] is None}
    return TargetReport(
        container=named(name).integers,
        carrier=named(name).carrier,
        bytes=sum(one.bytes for one in own.values()),
        sizes=_sizes(list(once.values())),
        packed=len({site.path for m in once.values() for site in m.sites if site.weight_container == "int4"}),
        claims=_claims(list(once.values())),
        executed=executed,
        attention={path: a for part in once if (engine := own[part].engine) for path, a in engine.attention.items()},
        parts=parts,
    )


def _part(unit: str, made: Made, outcome: Outcome) -> PartReport:
    graph = made.graphs[unit]
    return PartReport(
        bytes=sum(path.stat().st_size for path in graph.folder.glob("model.onnx*")),
        claims=read_manifest(graph).claims,
        parity=outcome.parity.get(unit),
        engine=read_engine(made.engines[unit]) if unit in made.engines else None,
        followed=outcome.followed.get(unit),
    )


def _claims(manifests: Sequence[GraphManifest]) -> Claims:
    """Of all parts."""
    gemm, attention = dict[str, int](), dict[str, int]()
    for manifest in manifests:
        for total, own in ((gemm, manifest.claims.gemm), (attention, manifest.claims.attention)):
            for kind, n in own.items():
                total[kind] = total.get(kind, 0) + n
    return Claims(gemm=gemm, attention=attention)  # type: ignore[arg-type]


def _sizes(manifests: Sequence[GraphManifest]) -> Sizes:
    names = Sizes.__struct_fields__
    return Sizes(**{name: sum(getattr(m.bytes, name) for m in manifests) for name in names})
