"""The comparison: other bits and round to nearest, over several seeds, each as fake-quant model and as graph."""

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from msgspec import structs

from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.methods.method import shared_options
from erq_export.calibrate.published.papers import all_of
from erq_export.contract.bundle import Bundle
from erq_export.contract.spec import PACKED_BITS, Bits, Quantization
from erq_export.contract.targets import TARGETS, deployable, grid_rules
from erq_export.data.calibration_set import calibration_set
from erq_export.data.images import ImageSource
from erq_export.exporters.onnx.write import lowered, marker_graph, rebound, save
from erq_export.flow.job import Job
from erq_export.flow.ui import Ui
from erq_export.models.loading import load
from erq_export.models.rebuild import reference_model
from erq_export.validate.metrics.accuracy import predict
from erq_export.validate.runners import OnnxRuntimeRunner, Runner, TorchRunner

CONTROL = "rtn"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the comparison: bits and method."""

    bits: Bits
    method: str


def rows_of(job: Job) -> list[Row]:
    """The control and the job's method at the job's bits and at every --compare."""
    every_bits = dict.fromkeys((job.method.bits, *job.evaluate.compare))
    methods = dict.fromkeys((CONTROL, job.method.method))
    return [Row(bits=bits, method=method) for bits in every_bits for method in methods]


def compare(job: Job, images: ImageSource, held_out: ImageSource, device: torch.device, ui: Ui) -> list[dict[str, Any]]:
    """One row a setting: mean, spread and every seed's top-1 of the fake-quant model and of ONNX Runtime on the graph.

    Seeds are consecutive from the job's own. The graph is the one for ONNX Runtime on CPU; what is only simulated has none.
    """
    rows, chosen, traced, n_seeds = [], rows_of(job), Traced(), job.evaluate.seeds
    for i, row in enumerate(chosen):
        asked, results = quantization(job, row), []
        for k, seed in enumerate(seeds(job)):
            ui.progress(f"{row.bits} {row.method}, seed {seed}", i * n_seeds + k, len(chosen) * n_seeds)
            results.append(_measure(job, asked, seed, images, held_out, device, traced))
        rows.append({"bits": str(row.bits), "method": row.method, **summary(results)})
    return rows


def seeds(job: Job) -> Iterator[int]:
    """Consecutive calibration seeds from the job's own."""
    yield from range(job.data.seed, job.data.seed + job.evaluate.seeds)


def quantization(job: Job, row: Row) -> Quantization:
    """The job's slice at a row's bits and method; weights too wide to be packed are not."""
    int4 = job.deploy.pack == "int4" and row.bits.w <= PACKED_BITS
    return structs.replace(
        job.quantization,
        bits=row.bits,
        method=row.method,
        options=all_of(shared_options(row.method, job.options)),
        rules=grid_rules(job.deploy.targets, int4_weights=int4),
    )


def _measure(
    job: Job,
    asked: Quantization,
    seed: int,
    images: ImageSource,
    held_out: ImageSource,
    device: torch.device,
    traced: "Traced",
) -> dict[str, float]:
    loaded = load(job.model, seed=job.data.seed)
    preprocess, limit = loaded.identity.preprocess, job.data.val_images or None
    data = calibration_set(images, preprocess, n=job.data.calib, seed=seed)
    bundle = calibrate(loaded, data, asked, device=device, progress=lambda *_: None)
    reference = TorchRunner(reference_model(bundle), device, name="reference")
    if not deployable(job.deploy.targets):
        alone = predict([reference], held_out, preprocess, limit=limit)
        return {"top1_reference": alone.top1("reference"), "layer_error": layer_error(bundle)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(lowered(traced.markers(bundle), TARGETS["onnx"], {})[0], path)
        runners: list[Runner] = [reference, OnnxRuntimeRunner(path, name="onnx")]
        found = predict(runners, held_out, preprocess, limit=limit)
    return {
        "top1_reference": found.top1("reference"),
        "top1_onnx": found.top1("onnx"),
        "agreement": found.agreement("reference", "onnx"),
        "layer_error": layer_error(bundle),
    }


@dataclass
class Traced:
    """Bundles of one architecture differ in values alone: the first one's trace serves them all."""

    first: ir.Model | None = None

    def markers(self, bundle: Bundle) -> ir.Model:
        again = None if self.first is None else rebound(self.first, bundle)
        if again is None:
            again = self.first = marker_graph(bundle)
        return again


def layer_error(bundle: Bundle) -> float:
    """Mean over the layers of the relative output error on the calibration rows."""
    return statistics.fmean(row.error for row in bundle.statistics.values())


def summary(results: list[dict[str, float]]) -> dict[str, Any]:
    """For every figure: mean, sample standard deviation, least, largest and all values, in the order of the seeds."""

    def figures(values: list[float]) -> dict[str, Any]:
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"mean": statistics.fmean(values), "std": spread, "min": min(values), "max": max(values), "all": values}

    return {name: figures([r[name] for r in results]) for name in results[0]}
