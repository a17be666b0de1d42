"""Everything that a report measures, and the gates that a run must pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from msgspec import structs
from torch import Tensor

from erq_export import __version__
from erq_export.contract.accuracy import Accuracy
from erq_export.contract.bench import Bench, BenchSpec
from erq_export.contract.bundle import Bundle
from erq_export.contract.cost import StageCost
from erq_export.contract.engine import EngineRecord
from erq_export.contract.errors import AccuracyError, EngineError, ParityError
from erq_export.contract.histograms import Histograms
from erq_export.contract.manifest import MANIFEST, GraphManifest
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.parity import ParityReport
from erq_export.contract.records import read
from erq_export.contract.report import (
    ComparisonRow,
    ImagesUsed,
    Latency,
    Layer,
    PriceRow,
    Report,
    TargetReport,
)
from erq_export.contract.story import Story
from erq_export.contract.targets import deployable, named
from erq_export.data.held_out import Images, Prepared, some
from erq_export.flow import bench
from erq_export.flow.ablation import price
from erq_export.flow.artifacts import Artifact, read_engine
from erq_export.flow.compare import compare
from erq_export.flow.engines import MODEL_ENGINE, runs_here
from erq_export.flow.heats import Timed, runs_on
from erq_export.flow.job import Job
from erq_export.flow.story import tell
from erq_export.flow.work import Work
from erq_export.models.aliases import published_top1
from erq_export.models.rebuild import reference_model
from erq_export.validate.contestants import Subject, is_here, takers
from erq_export.validate.gates import broken
from erq_export.validate.latency import measure_latency
from erq_export.validate.metrics.accuracy import accuracy as beside
from erq_export.validate.metrics.histograms import histograms
from erq_export.validate.parity.decision import MOST as DECISIONS
from erq_export.validate.report.words import headline
from erq_export.validate.runners import OnnxRuntimeRunner

PARITY_IMAGES = 4  # teacher-forced inputs of every layer are compared on these, and counted
LATENCY_BATCH = 1


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a run made: its bundle, and by target its graphs and engines."""

    bundle: Artifact
    graphs: Mapping[str, Artifact]
    engines: Mapping[str, Artifact]


@dataclass(kw_only=True)
class Measured:
    """What was found; `report` puts it in order."""

    job: Job
    path: Path
    accuracy: Accuracy | None = None
    comparison: tuple[ComparisonRow, ...] = ()
    price: tuple[PriceRow, ...] = ()
    parity: dict[str, ParityReport] = field(default_factory=dict)
    engines: dict[str, EngineRecord] = field(default_factory=dict)
    latency: Latency | None = None
    histograms: Histograms | None = None
    bench: Bench | None = None
    story: Story | None = None

    def engine_problems(self) -> list[str]:
        return [f"{name}: {p}" for name, record in self.engines.items() for p in record.problems]

    def parity_problems(self) -> list[str]:
        return [f"{name}: {p}" for name, report in self.parity.items() for p in report.problems()]

    def accuracy_problems(self) -> list[str]:
        """The gates on held-out images that were asked for and do not hold."""
        return [] if self.accuracy is None else broken(self.job.evaluate, self.accuracy)

    def report(
        self,
        artifact: Artifact,
        bundle: Bundle,
        stages: Sequence[StageCost],
        *,
        machine: dict[str, str],
        versions: dict[str, str],
    ) -> Report:
        """The report: what was run, by the bundle that came of it, and what was found."""
        report = Report(
            erq_export=__version__,
            bundle_sha256=artifact.content,
            model=bundle.identity,
            quantization=bundle.spec,
            targets_asked=self.job.deploy.targets,
            data=ImagesUsed(n_images=bundle.data.n_images, pixels_sha256=bundle.data.pixels_sha256),
            machine=machine,
            versions=versions,
            stages=tuple(stages),
            accuracy=self.accuracy,
            comparison=self.comparison,
            price=self.price,
            targets={name: self._target(name) for name in deployable(self.job.deploy.targets)},
            latency=self.latency,
            layers=tuple(
                Layer(path=path, w_bits=layer.w_bits, a_bits=layer.a_bits, statistics=bundle.statistics[path])
                for path, layer in bundle.layers.items()
            ),
            not_verified=tuple(
                f"{name}'s engine was compiled, not run: that needs its GPU (speed, FP16 range, outputs)."
                for name in self.engines
                if self.accuracy is None or f"{name} engine" not in self.accuracy.graphs
            ),
            rotated=bundle.rotated,
            story=self.story,
            histograms=self.histograms,
            problems=(*self.engine_problems(), *self.parity_problems(), *self.accuracy_problems()),
        )
        return structs.replace(report, headline=headline(report))

    def _target(self, name: str) -> TargetReport:
        out, engine, parity = OutputFolder(self.path), self.engines.get(name), self.parity.get(name)
        manifest = read(GraphManifest, out.target(name) / MANIFEST)
        return TargetReport(
            container=named(name).integers,
            carrier=named(name).carrier,
            bytes=out.graph_bytes(name),
            sizes=manifest.bytes,
            packed=sum(site.weight_container == "int4" for site in manifest.sites),
            claims=manifest.claims,
            executed={**engine.precision} if engine else parity.executed if parity else {},
            attention=engine.attention if engine else parity.attention if parity else {},
            parity=parity,
            engine=engine,
        )


def measure(work: Work, path: Path, made: Made) -> Measured:
    """Parity of every graph, histograms, accuracy where there are images, the comparison, the price of choices, latency."""
    job, held_out = work.job, work.held_out
    found = Measured(job=job, path=path)
    found.engines = {name: read_engine(engine) for name, engine in made.engines.items()}
    if made.graphs:
        with work.stage("parity"):
            for name in unique_graphs(tuple(made.graphs)):
                found.parity[name] = parity(work, made.bundle, made.graphs[name])
    with work.stage("story"):
        found.story = tell(work, made.bundle, sensitivity=job.evaluate.sensitivity)
    with work.stage("histograms"):
        reference = reference_model(made.bundle.read(Bundle.load)).to(work.stages.device)
        found.histograms = histograms(reference, work.calibration_images(job.data.seed).pixels[:PARITY_IMAGES])
    if held_out is not None:
        with work.stage("accuracy"):
            found.accuracy = accuracy(work, made, held_out)
        if job.evaluate.compares:
            with work.stage("comparison"):
                found.comparison = compare(work, held_out)
    if made.graphs and tuple(made.graphs) != job.deploy.targets:
        with work.stage("price"):
            found.price = price(work, held_out)
    if "onnx" in made.graphs:
        with work.stage("latency"):
            pixels = work.calibration_images(job.data.seed).pixels[:LATENCY_BATCH]
            found.latency = latency(work, made.graphs["onnx"], pixels)
    if made.graphs and job.evaluate.bench:
        with work.stage("bench"):
            found.bench = bench.measure(
                Timed(
                    stages=work.stages,
                    model=work.model,
                    bundle=made.bundle,
                    out=OutputFolder(path),
                    targets=tuple(made.graphs),
                ),
                work.ui,
                BenchSpec(),
            )
    return found


def parity(work: Work, bundle: Artifact, graph: Artifact) -> ParityReport:
    """Of one graph, on calibration images; decisions, where they are needed, on held-out images or else on all of those."""
    data = work.calibration_images(work.job.data.seed)
    many: Images = Prepared(tensor=data.pixels, fingerprint=data.sha256)
    if work.held_out is not None:
        many = some(work.held_out, DECISIONS)
    return work.stages.parity(bundle, graph, data.pixels[:PARITY_IMAGES], data.sha256, many)


def unique_graphs(targets: tuple[str, ...]) -> list[str]:
    """One target of each kind of graph: tensorrt and tensorrt-rtx are handed the same file."""
    kinds: dict[tuple[str, str, str], str] = {}
    for name in targets:
        row = named(name)
        kinds.setdefault((row.container, row.carrier, row.weight_form), name)
    return list(kinds.values())


def accuracy(work: Work, made: Made, images: Images) -> Accuracy:
    """The float model, the reference, every graph in every runner that this machine has, and the engines that run here, on the
    same images."""
    exact, reference = work.float_decisions(images), work.reference_decisions(made.bundle, images)
    graphs = {}
    for name in unique_graphs(tuple(made.graphs)):
        graphs[name] = work.graph_decisions(made.graphs[name], images)
        for runner in other_runners(name):
            graphs[f"{name} in {runner}"] = work.graph_decisions(made.graphs[name], images, runner)
    for name, engine in made.engines.items():
        if engine.read(lambda folder: runs_here(folder / MODEL_ENGINE)):
            graphs[f"{name} engine"] = work.graph_decisions(engine, images, "engine")
    return structs.replace(beside(exact, reference, graphs), published_top1=published_top1(work.model.identity))


def other_runners(target: str) -> list[str]:
    """Where else than in ONNX Runtime on the CPU a target's graph runs here: what is meant for TensorRT runs there alone."""
    graph = Subject(name=target, takes="graph", role="ours", runs_on=runs_on(target))
    return [name for name in takers(graph, frozenset()) if name != "onnxruntime" and is_here(name)]


def latency(work: Work, graph: Artifact, pixels: Tensor) -> Latency:
    """ONNX Runtime on this CPU: the float32 model's graph against the quantized one, interleaved. Measured every time."""
    baseline, threads = work.stages.float_graph(work.model), torch.get_num_threads()

    def runner(name: str, of: Artifact) -> OnnxRuntimeRunner:
        return of.read(lambda folder: OnnxRuntimeRunner(folder / "model.onnx", threads=threads, name=name))

    runners = [runner("float", baseline), runner("onnx", graph)]
    return measure_latency(runners, pixels, threads=threads)


def raise_gates(
    out: Path,
    *,
    engine_problems: list[str],
    parity_problems: list[str] | None = None,
    accuracy_problems: list[str] | None = None,
) -> None:
    """The gate that failed first in the chain: engine (6), parity (5), accuracy (4)."""
    where = f"see {out / 'report.html'}"
    if engine_problems:
        raise EngineError("; ".join(engine_problems), fix=f"{where} and plan.txt; report the model with its build.log")
    if parity_problems:
        raise ParityError("; ".join(parity_problems), fix=f"{where}; report the model and its bundle")
    if accuracy_problems:
        raise AccuracyError(
            "; ".join(accuracy_problems), fix="more bits (--bits w4a8), more --calib images, or a wider bound"
        )
