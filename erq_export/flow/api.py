"""The Python API: each function is one stage, or all of them. The command line calls nothing else.

Silent unless `ui="terminal"`. What a run makes is kept in the user's store (`store=False`: not at all; a path: there).
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from erq_export.backends.device import device_named
from erq_export.contract.bench import Bench
from erq_export.contract.bisection import Bisection
from erq_export.contract.bundle import Bundle
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.errors import SpecError
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.output.writing import Writing
from erq_export.contract.records import Scalar
from erq_export.contract.report import Report
from erq_export.contract.spec import Bits, Pack
from erq_export.contract.targets import named
from erq_export.data.given import Calibration, Given, calibration_from, gathered
from erq_export.data.held_out import HeldOut, Images, Prepared, some
from erq_export.data.images import ImageFolder
from erq_export.data.sources import check_class_folders
from erq_export.flow import bench as timing
from erq_export.flow import bisect as walking
from erq_export.flow import run as flow
from erq_export.flow.artifacts import Artifact
from erq_export.flow.begin import NOTHING_OWN, Own, begin
from erq_export.flow.choose import N_JUDGED, settled
from erq_export.flow.detection import run as detection
from erq_export.flow.detection.asked import is_detector, require_classifier
from erq_export.flow.job import Job, read_run, resolve
from erq_export.flow.places import Kept, Where, opened, shown
from erq_export.flow.results import Engine, Graph, Validation
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.models.limits import check_attention
from erq_export.models.loading import n_classes
from erq_export.models.own import Architecture, own_model
from erq_export.models.rebuild import attention_shapes, reference_model
from erq_export.validate.metrics.decisions import decide
from erq_export.validate.parity.decision import MOST as DECISIONS
from erq_export.validate.runners import OnnxRuntimeRunner, TorchRunner

Model = str | nn.Module
PARITY_IMAGES = 4


def run(
    model: Model | Job,
    *,
    out: str | Path,
    bits: str | Bits | None = None,
    to: str | Sequence[str] | None = None,
    data: Given | None = None,
    val: Given | None = None,
    options: Mapping[str, Scalar] | None = None,
    architecture: Architecture | None = None,
    store: Kept = None,
    ui: Where = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
    **given: Any,
) -> Report:
    """The whole chain into the folder `out`; returns the report.

    model: a short name, a timm name, a module of a timm class, or a resolved Job (then nothing else is asked).
    data, val: see `calibrate`; labels come with `val`.  given: any further field of the job's slices by name, such as
    method="gptq", calib=64, seeds=3, attention="int8" (`contract.spec`); options: the method's own.  command: the words
    that the manifest names as what was run. An unfinished run of the same job in `out` goes on where it was.
    Raises ErqError before work that it would waste; AccuracyError, ParityError, EngineError once the report is written.
    """
    if isinstance(model, Job):
        job, own = model, NOTHING_OWN
    else:
        job, own = _asked(model, bits, to, data, val, options, architecture, given)
    with opened(store) as kept:
        if is_detector(job.model.name):
            return detection.run(job, Path(out), shown(ui), store=kept, overwrite=overwrite, command=command)
        return flow.run(job, Path(out), shown(ui), store=kept, overwrite=overwrite, own=own, command=command)


def calibrate(
    model: Model,
    *,
    bits: str | Bits,
    data: Given | None = None,
    to: str | Sequence[str] = "onnx",
    options: Mapping[str, Scalar] | None = None,
    architecture: Architecture | None = None,
    store: Kept = None,
    ui: Where = None,
    **given: Any,
) -> Bundle:
    """The integers for a model: what every target of `to` can run.

    data: a folder (searched recursively), image files, a float tensor (n, C, H, W), or any iterable of such batches or of
    (images, labels), a DataLoader for one: tensors are taken as they are, prepared for the model, `calib` of them (32).
    architecture: (timm name, arguments) that built an own module, where they cannot be read off it.
    The same job gives the same bytes as the command line.
    """
    job, own = _asked(model, bits, to, data, None, options, architecture, given)
    require_classifier(job.model.name, "calibrate")
    with opened(store) as kept:
        work = settled(begin(job, shown(ui), kept, own))
        images = work.calibration_images(job.data.seed)
        return work.stages.bundle(work.model, images, work.job.quantization).read(Bundle.load)


def export(
    bundle: Bundle | str | Path,
    *,
    to: str,
    out: str | Path,
    pack: Pack = "int8",
    store: Kept = None,
    ui: Where = None,
) -> Graph:
    """The bundle's graph for a target, as OUT/<target>/model.onnx. SpecError where the target cannot run the bundle."""
    row, found = named(to), bundle if isinstance(bundle, Bundle) else Bundle.load(Path(bundle))
    require_classifier(found.identity.timm_name, "export")
    if row.simulated or not found.spec.rules.holds_zero:
        raise SpecError(
            f"no graph can be written for {to} from this bundle", fix='calibrate(…, to="onnx"), then export'
        )
    if found.operands:
        check_attention(attention_shapes(found), [to])
    folder = OutputFolder.named(str(out))
    with opened(store) as kept, _saved(found) as artifact, _writing(folder, folder.planned_for([to])) as writing:
        flow.place(writing, to, _stages(kept, ui).graph(artifact, to, pack))
    return Graph(target=to, path=Path(out) / to / "model.onnx")


def build(
    graph: Graph,
    *,
    capability: Sequence[str] = ("8.6", "8.9", "12.0"),
    max_batch: int = 32,
    store: Kept = None,
    ui: Where = None,
    **asked: Any,
) -> Engine:
    """The engine of a graph, beside it: OUT/<target>/engine/model.engine. SpecError for a target without engines.

    asked: further fields of `contract.engine_spec.EngineSpec`, such as batch=(1, 8, 32) in the place of max_batch, workspace=1024
    (MiB), hardware="ampere", any_version=True.
    """
    row, folder = named(graph.target), graph.path.parent
    if row.package is None:
        raise SpecError(f"{graph.target} has no engine: its graph is what runs", fix='to="tensorrt-rtx" or "tensorrt"')
    own = {"batch": (1, min(8, max_batch), max_batch), "capability": tuple(capability)}
    spec, out = EngineSpec.named(own | asked), OutputFolder(folder.parent)
    with opened(store) as kept, _writing(out, out.planned_for([graph.target])) as writing:
        engine = _stages(kept, ui).engine(Artifact.at(folder), row, spec)
        flow.place(writing, f"{graph.target}/engine", engine)
    return Engine(target=graph.target, path=folder / "engine" / "model.engine")


def validate(
    bundle: Bundle | str | Path,
    graph: Graph,
    *,
    data: Given,
    store: Kept = None,
    ui: Where = None,
) -> Validation:
    """Hold a graph in ONNX Runtime against its bundle's fake-quant reference, on images as `calibrate` takes them.

    A folder has one sub-folder a class; labels of a loader are used where it gives them.
    """
    found = bundle if isinstance(bundle, Bundle) else Bundle.load(Path(bundle))
    require_classifier(found.identity.timm_name, "validate")
    images = _held_out(data, found)
    with opened(store) as kept, _saved(found) as artifact:
        stages = _stages(kept, ui)
        pixels = next(iter(images.pixels()))[:PARITY_IMAGES]
        parity = stages.parity(
            artifact, Artifact.at(graph.path.parent), pixels, images.fingerprint, some(images, DECISIONS)
        )
        reference = decide(TorchRunner(reference_model(found), stages.device), images)
        onnx = decide(OnnxRuntimeRunner(graph.path), images)
    labelled = images.labels is not None
    top1 = {"reference": reference.top1(), graph.target: onnx.top1()} if labelled else {}
    return Validation(parity=parity, n_images=len(images), agreement=reference.agreement(onnx), top1=top1)


def bench(out: str | Path, *, store: Kept = None, ui: Where = None, **asked: Any) -> Bench:
    """Time the run in the folder `out` in everything that this machine can run it in, beside its float twin.

    asked: fields of `contract.bench.BenchSpec`, such as batch=(1, 8), threads=(1,), seconds=2.0, also=("torch",),
    against="theirs.onnx", require_speedup=1.2. SpeedError where that is not shown, once everything is written.
    """
    with opened(store) as kept:
        return timing.bench(read_run(Path(out)), Path(out), shown(ui), store=kept, asked=timing.spec(asked))


def bisect(out: str | Path, *, store: Kept = None, ui: Where = None) -> tuple[Bisection, ...]:
    """For every graph of the run in the folder `out`, the first place that differs from what was calibrated.

    What is needed to see it again is written to OUT/bisect. Nothing is raised for a difference: see `first` and `equal`.
    """
    require_classifier((job := read_run(Path(out))).model.name, "bisect")
    with opened(store) as kept:
        return walking.bisect(job, Path(out), shown(ui), store=kept)


def _asked(
    model: Model,
    bits: str | Bits | None,
    to: str | Sequence[str] | None,
    data: Given | None,
    val: Given | None,
    options: Mapping[str, Scalar] | None,
    architecture: Architecture | None,
    given: Mapping[str, Any],
) -> tuple[Job, Own]:
    """The job, and what of it is the caller's own."""
    asked: dict[str, Any] = dict(given) | {"name": model if isinstance(model, str) else type(model).__name__}
    asked["bits"] = bits
    if is_detector(asked["name"]) and not all(given is None or isinstance(given, str | Path) for given in (data, val)):
        raise SpecError(f"{model} takes pictures from folders", fix='data="photos", or coco="coco" laid out as COCO is')
    if to is not None:
        asked["targets"] = (to,) if isinstance(to, str) else tuple(to)
    for name, source in (("data", data), ("val", val)):
        if isinstance(source, str | Path):
            asked[name] = str(source)
    preprocess = asked.get("preprocess") or {}
    if not isinstance(model, str):
        asked["model_args"] = {}
    job = resolve(asked, options=options)
    loaded = None if isinstance(model, str) else own_model(model, architecture, preprocess)
    calibration: Calibration | None = None
    if data is not None:
        calibration = calibration_from(data, at_most=job.data.calib + (0 if job.method.budget is None else N_JUDGED))
    held = None if val is None or isinstance(val, str | Path) else _prepared(val)
    return job, Own(model=loaded, calibration=calibration, held_out=held)


def _held_out(data: Given, bundle: Bundle) -> Images:
    if isinstance(data, str | Path):
        source, fix = ImageFolder(Path(data), labelled=True), "a loader of (images, labels) in the place of the folder"
        check_class_folders(source, n_classes(reference_model(bundle)), what=f"data={str(data)!r}", fix=fix)
        return HeldOut(source=source, preprocess=bundle.identity.preprocess)
    return _prepared(data)


def _prepared(data: Tensor | Iterable[Any]) -> Prepared:
    images, labels = gathered(data)
    return Prepared(tensor=images, labels=labels, fingerprint=hashlib.sha256(images.numpy().tobytes()).hexdigest())


@contextmanager
def _saved(bundle: Bundle) -> Iterator[Artifact]:
    """A bundle in memory as an artifact: equal bundles have equal contents, wherever they lie."""
    with tempfile.TemporaryDirectory(prefix="erq-export-") as folder:
        bundle.save(Path(folder))
        yield Artifact.at(Path(folder))


def _writing(folder: OutputFolder, planned: Sequence[str]) -> AbstractContextManager[Writing]:
    """Into the run that the folder holds, or into a new one."""
    return folder.resume(planned=planned) if folder.manifest.exists() else folder.begin(planned=planned)


def _stages(store: Store, ui: Where) -> Stages:
    return Stages(store=store, ui=shown(ui), device=device_named("cpu"))


__all__ = ["Engine", "Graph", "Job", "Validation", "bench", "bisect", "build", "calibrate", "export", "run", "validate"]
