"""`build`: the graphs and engines of a finished run, again, for further targets, or beside those of the float model."""

from collections.abc import Sequence
from pathlib import Path

from erq_export.backends.device import device_named
from erq_export.contract.bundle import Bundle
from erq_export.contract.engine import TIMINGS
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.errors import DataError
from erq_export.contract.identity import Identity
from erq_export.contract.output.folder import TWIN, OutputFolder
from erq_export.contract.targets import named
from erq_export.flow.artifacts import Artifact, read_engine
from erq_export.flow.job import Job
from erq_export.flow.measure import raise_gates
from erq_export.flow.run import make, place
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.flow.work import Course
from erq_export.models.limits import check_attention
from erq_export.models.loading import Loaded, load
from erq_export.models.rebuild import attention_shapes


def build(
    job: Job,
    out: Path,
    ui: Ui,
    *,
    store: Store,
    targets: Sequence[str],
    engine: EngineSpec | None = None,
    twin: bool = False,
) -> None:
    """Write what a run's bundle is deployed as; engine: what is asked of engines, where that is not what the run asked.

    twin: the float model's FP16 graph and engine too, in OUT/twin/<target>, for the targets that have engines.
    SpecError where a target lacks the bundle's int8 attention, DataError where the float model is not the one that was
    calibrated, EngineError where a claim is broken.
    """
    folder, asked = OutputFolder(out), engine or EngineSpec.of(job.deploy)
    bundle = Bundle.load(folder.bundle)
    if bundle.operands:
        check_attention(attention_shapes(bundle), targets)
    stages, course = Stages(store=store, ui=ui, device=device_named(job.device)), Course(ui)
    model = float_model(job, folder, bundle.identity, course) if twin else None
    timings = timed(folder, targets)
    with folder.resume(planned=folder.planned_for(targets, twin=twin)) as writing:
        artifact = Artifact.at(folder.bundle)
        made = make(course, stages, job.deploy, writing, artifact, targets, engine=asked, timings=timings)
        engines = dict(made.engines)
        if model is not None:
            for name in made.engines:
                with course.stage(f"build the FP16 twin for {name}"):
                    twin_of = f"{TWIN}/{name}"
                    graph = stages.twin(model, named(name))
                    place(writing, twin_of, graph)
                    engines[twin_of] = stages.engine(graph, named(name), asked, timings=timings.get(name))
                    place(writing, f"{twin_of}/engine", engines[twin_of])
    raise_gates(folder.path, engine_problems=[p for e in engines.values() for p in read_engine(e).problems])


def float_model(job: Job, folder: OutputFolder, identity: Identity, course: Course) -> Loaded:
    """The float model that a run's bundle was made from, loaded again. DataError where it is another one, or cannot be."""
    if identity.weights == "module":
        raise DataError(
            f"the float model of {folder.path} was a module of a Python program, which no file holds",
            fix="save its weights, then erq-export MODEL --checkpoint FILE --out DIR makes a run that can be built from",
        )
    with course.stage("load"):
        model = load(job.model, seed=job.data.seed)
    kept = folder.read_run_manifest().weights.get(model.identity.timm_name)
    if kept != model.fingerprint:
        raise DataError(
            f"{job.model.name} is not the float model that {folder.path} was calibrated from: its weights are others",
            fix="--checkpoint with the file of the run, or calibrate again",
        )
    return model


def timed(folder: OutputFolder, targets: Sequence[str]) -> dict[str, bytes]:
    """By target, what the builds before this one have timed; the builder refuses what is not of its GPU and version."""
    paths = {name: folder.engine(name) / TIMINGS for name in targets}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
