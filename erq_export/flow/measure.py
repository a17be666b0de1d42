"""Everything that a report measures, and the gates that a run must pass."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erq_export.backends.machine import processor
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import AccuracyError, EngineError, ParityError
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.records import plain_of
from erq_export.contract.targets import deployable, named
from erq_export.data.images import ImageSource
from erq_export.exporters.onnx.write import float_graph, save
from erq_export.flow.ablation import price
from erq_export.flow.compare import compare
from erq_export.flow.job import Job
from erq_export.flow.ui import Ui
from erq_export.models.loading import load
from erq_export.models.rebuild import reference_model
from erq_export.validate.latency import Latency, measure_latency
from erq_export.validate.metrics.accuracy import predict
from erq_export.validate.parity.check import ParityReport, check_parity
from erq_export.validate.report.markdown import REPORT_FORMAT, headline
from erq_export.validate.runners import OnnxRuntimeRunner, Runner, TorchRunner

Stage = Callable[[str], AbstractContextManager[None]]

PARITY_IMAGES = 4  # teacher-forced inputs of every layer are compared on these
LATENCY_BATCH = 1


@dataclass(kw_only=True)
class Measured:
    """What was found; `report` puts it in order."""

    job: Job
    path: Path
    accuracy: dict[str, Any] | None = None
    comparison: list[dict[str, Any]] = field(default_factory=list)
    price: list[dict[str, Any]] = field(default_factory=list)
    parity: dict[str, ParityReport] = field(default_factory=dict)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    latency: Latency | None = None
    processor: str = ""

    @property
    def out(self) -> OutputFolder:
        return OutputFolder(self.path)

    def engine_problems(self) -> list[str]:
        return [f"{name}: {p}" for name, record in self.engines.items() for p in record["problems"]]

    def parity_problems(self) -> list[str]:
        return [f"{name}: {p}" for name, report in self.parity.items() for p in report.problems()]

    def accuracy_problems(self) -> list[str]:
        """The accuracy gate, where one was asked for and accuracy could be measured."""
        if self.job.evaluate.max_drop is None or self.accuracy is None:
            return []
        top1 = self.accuracy["top1"]
        drops = {name: top1["float"] - value for name, value in top1.items() if name != "float"}
        return [
            f"{name} is {drop:.2f} points below float, --max-drop allows {self.job.evaluate.max_drop}"
            for name, drop in drops.items()
            if drop > self.job.evaluate.max_drop
        ]

    def report(self, description: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
        """The report as plain data: `description` says what was run, this adds what was found."""
        targets = {}
        for name in deployable(self.job.deploy.targets):
            manifest = self.out.read_manifest(name)
            engine = self.engines.get(name)
            parity = self.parity.get(name)
            targets[name] = {
                "container": named(name).container,
                "carrier": named(name).carrier,
                "bytes": self.out.graph_bytes(name),
                "sizes": manifest["bytes"],
                "packed": sum(site["weight_container"] == "int4" for site in manifest["sites"]),
                "claims": manifest["claims"],
                "executed": engine["precision"] if engine else parity.executed if parity else {},
                "attention": engine["attention"] if engine else parity.attention if parity else {},
                "parity": None if parity is None else {"says": parity.says(), **parity.to_json()},
                "engine": engine,
            }
        report = {
            "format": REPORT_FORMAT,
            "headline": [],
            **description,
            "accuracy": self.accuracy,
            "comparison": self.comparison,
            "price": self.price,
            "targets": targets,
            "latency": None if self.latency is None else self.latency.to_json(),
            "layers": [
                {"path": path, "w_bits": layer.w_bits, "a_bits": layer.a_bits, **plain_of(bundle.statistics[path])}
                for path, layer in bundle.layers.items()
            ],
            "not_verified": [
                f"{name}'s engine was compiled, not run: that needs its GPU (speed, FP16 range, outputs)."
                for name in self.engines
            ],
            "problems": self.engine_problems() + self.parity_problems() + self.accuracy_problems(),
        }
        return report | {"headline": headline(report)}


def measure(
    job: Job,
    path: Path,
    bundle: Bundle,
    images: ImageSource,
    held_out: ImageSource | None,
    pixels: Tensor,
    device: torch.device,
    ui: Ui,
    stage: Stage,
) -> Measured:
    """Parity of every graph, accuracy where there are labels, the comparison, latency. `pixels` are the calibration set."""
    found, out = Measured(job=job, path=path, processor=processor()), OutputFolder(path)
    reference = reference_model(bundle)
    targets = deployable(job.deploy.targets)
    for name in targets:
        if out.has_engine(name):
            found.engines[name] = out.read_engine(name)
    if targets:
        with stage("parity"):
            for name in unique_graphs(targets):
                found.parity[name] = check_parity(
                    reference,
                    out.graph(name),
                    out.read_manifest(name),
                    bundle.layers,
                    pixels[:PARITY_IMAGES],
                    progress=ui.progress,
                )
    if held_out is not None:
        with stage("accuracy"):
            found.accuracy = accuracy(job, path, bundle, reference, held_out, device, ui)
        if job.evaluate.compare or job.evaluate.seeds > 1 or held_out.labels is not None:
            with stage("comparison"):
                found.comparison = compare(job, images, held_out, device, ui)
    if targets and targets != job.deploy.targets:
        with stage("price"):
            found.price = price(job, images, held_out, device, ui)
    if "onnx" in job.deploy.targets:
        with stage("latency"), tempfile.TemporaryDirectory() as folder:
            found.latency = latency(job, path, bundle, pixels[:LATENCY_BATCH], Path(folder))
    return found


def unique_graphs(targets: tuple[str, ...]) -> list[str]:
    """One target of each kind of graph: tensorrt and tensorrt-rtx are handed the same file."""
    kinds: dict[tuple[str, str, str], str] = {}
    for name in targets:
        row = named(name)
        kinds.setdefault((row.container, row.carrier, row.weight_form), name)
    return list(kinds.values())


def accuracy(
    job: Job, path: Path, bundle: Bundle, reference: nn.Module, held_out: ImageSource, device: torch.device, ui: Ui
) -> dict[str, Any]:
    """Top-1 of the float model, the reference and every graph in ONNX Runtime, and their agreement with the reference."""
    out, graphs = OutputFolder(path), unique_graphs(deployable(job.deploy.targets))
    runners: list[Runner] = [
        TorchRunner(load(job.model, seed=job.data.seed).model, device, name="float"),
        TorchRunner(reference, device, name="reference"),
        *(OnnxRuntimeRunner(out.graph(name), name=name) for name in graphs),
    ]
    found = predict(
        runners,
        held_out,
        bundle.identity.preprocess,
        limit=job.data.val_images or None,
        progress=lambda done, total: ui.progress("accuracy", done, total),
    )
    return {
        "n_images": len(found.by_runner["float"]),
        "top1": {runner.name: found.top1(runner.name) for runner in runners},
        "agreement": {name: found.agreement("reference", name) for name in ("float", *graphs)},
    }


def latency(job: Job, path: Path, bundle: Bundle, pixels: Tensor, folder: Path) -> Latency:
    """ONNX Runtime on this CPU: the float32 model's graph against the quantized one, interleaved."""
    baseline = folder / "float.onnx"
    save(float_graph(load(job.model, seed=job.data.seed).model, bundle.identity.preprocess.input_size), baseline)
    threads = torch.get_num_threads()
    runners = [
        OnnxRuntimeRunner(baseline, threads=threads, name="float"),
        OnnxRuntimeRunner(OutputFolder(path).graph("onnx"), threads=threads, name="onnx"),
    ]
    return measure_latency(runners, pixels, threads=threads)


def raise_gates(
    out: Path,
    *,
    engine_problems: list[str],
    parity_problems: list[str] | None = None,
    accuracy_problems: list[str] | None = None,
) -> None:
    """The gate that failed first in the chain: engine (6), parity (5), accuracy (4)."""
    where = f"see {out / 'report.md'}"
    if engine_problems:
        raise EngineError("; ".join(engine_problems), fix=f"{where} and plan.txt; report the model with its build.log")
    if parity_problems:
        raise ParityError("; ".join(parity_problems), fix=f"{where}; report the model and its bundle")
    if accuracy_problems:
        raise AccuracyError(
            "; ".join(accuracy_problems), fix="more bits (--bits w4a8), more --calib images, or a larger --max-drop"
        )
