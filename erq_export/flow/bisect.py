"""`validate OUT --bisect`: from the reference to each graph of a finished run, to the first place that differs."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from erq_export.backends.device import device_named
from erq_export.contract.bisection import Bisection
from erq_export.contract.bundle import Bundle
from erq_export.contract.engine import MODEL
from erq_export.contract.errors import DataError, ParityError
from erq_export.contract.files import file_sha256, graph_sha256
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.targets import deployable
from erq_export.data.calibration_set import CalibrationSet
from erq_export.data.given import FromSource
from erq_export.data.held_out import Prepared
from erq_export.data.sources import calibration_source
from erq_export.flow.artifacts import Artifact, read_engine, read_manifest
from erq_export.flow.job import Job
from erq_export.flow.measure import PARITY_IMAGES
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.bisect import bisect as walk
from erq_export.validate.parity.bisect import write
from erq_export.validate.parity.reproduce import Reproduction


def bisect(job: Job, out: Path, ui: Ui, *, store: Store) -> tuple[Bisection, ...]:
    """Of every graph of the run, on images that it was calibrated on; each is written to OUT/bisect/<target>.

    The float model is not needed. A graph that is not the one that the run wrote is walked all the same, and named as
    foreign. DataError where what lies there is no graph, or belongs to no manifest.
    """
    folder, targets = OutputFolder(out), deployable(job.deploy.targets)
    stages = Stages(store=store, ui=ui, device=device_named("cpu"))
    found = Bundle.load(folder.bundle)
    calibration = FromSource(calibration_source(job.model.name, job.data))
    images = calibration.draw(found.identity.preprocess, n=job.data.calib, seed=job.data.seed)
    records = []
    with folder.resume(planned=folder.planned_bisections(targets)) as writing:
        for name in targets:
            foreign = tuple(_foreign(folder, folder.foreign(writing.manifest, [name]), name))
            with ui.stage(f"bisect {name}"):
                try:
                    record, kept = _walked(stages, folder, name, images, foreign)
                except DataError as e:
                    raise DataError("; ".join([*foreign, e.problem]), fix=e.fix) if foreign else e from e
            writing.place(f"bisect/{name}", partial(write, record=record, kept=kept))
            records.append(record)
    return tuple(records)


def raise_differences(records: Sequence[Bisection], out: Path) -> None:
    """ParityError where something differs, naming the first place of each graph."""
    wrong = [record for record in records if not record.equal]
    if wrong:
        shown = ", ".join(str(OutputFolder(out).bisection(record.target)) for record in wrong)
        raise ParityError(
            " ".join(record.says() for record in wrong), fix=f"what is needed to see it again lies in {shown}"
        )


def _walked(
    stages: Stages, folder: OutputFolder, name: str, images: CalibrationSet, foreign: tuple[str, ...]
) -> tuple[Bisection, Reproduction | None]:
    bundle, graph = Artifact.at(folder.bundle), Artifact.at(folder.target(name))
    pixels = images.pixels[:PARITY_IMAGES]
    many = Prepared(tensor=images.pixels, fingerprint=images.sha256)
    report = stages.parity(bundle, graph, pixels, images.sha256, many)
    engine = f"{name}: the engine was not run, that needs its GPU; its hashes were compared"
    return walk(
        reference_model(bundle.read(Bundle.load).deployed()),
        folder.graph(name),
        read_manifest(graph),
        report,
        pixels,
        bundle=bundle.content,
        foreign=foreign,
        not_executed=(engine,) if folder.has_engine(name) else (),
    )


def _foreign(folder: OutputFolder, changed: Sequence[str], name: str) -> Iterator[str]:
    """What lies there in another's place: told by the run's manifest, by the engine's record."""
    for path in changed:
        yield f"{folder.path / path} is not the file that the run wrote"
    if not folder.has_engine(name):
        return
    record, engine = read_engine(Artifact.at(folder.engine(name))), folder.engine(name) / MODEL
    if record.graph_sha256 != graph_sha256(folder.graph(name)):
        yield f"{engine} was built from another graph than {folder.graph(name)}"
    if record.engine_sha256 != file_sha256(engine):
        yield f"{engine} is not the engine that its record describes"
