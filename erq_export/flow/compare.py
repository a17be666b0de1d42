"""The comparison: other bits and round to nearest, over several seeds, each as fake-quant model and as graph."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec import structs

from erq_export.calibrate.methods.method import shared_options
from erq_export.calibrate.published.papers import all_of
from erq_export.contract.bundle import Bundle
from erq_export.contract.report import ComparisonRow, Figures
from erq_export.contract.spec import Bits, Pack, Quantization
from erq_export.contract.targets import deployable, grid_rules
from erq_export.data.held_out import Images
from erq_export.flow.job import Job
from erq_export.flow.parallel import Piece, fill_store
from erq_export.flow.work import Work

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


def compare(work: Work, images: Images) -> tuple[ComparisonRow, ...]:
    """One row a setting: mean, spread and every seed's top-1 of the fake-quant model and of ONNX Runtime on the graph.

    Seeds are consecutive from the job's own. The graph is the one for ONNX Runtime on CPU; what is only simulated has none.
    """
    job, rows = work.job, []
    chosen, n_seeds = rows_of(job), job.evaluate.seeds
    wanted = [(quantization(job, row), pack_of(job, row.bits), seed) for row in chosen for seed in seeds(job)]
    fill_store(work, "erq_export.flow.compare:measure_piece", wanted)
    for i, row in enumerate(chosen):
        asked, results = quantization(job, row), []
        for k, seed in enumerate(seeds(job)):
            work.ui.progress(f"{row.bits.brief} {row.method}, seed {seed}", i * n_seeds + k, len(chosen) * n_seeds)
            results.append(measured(work.quiet, asked, pack_of(job, row.bits), seed, images))
        rows.append(ComparisonRow(bits=row.bits, method=row.method, **summary(results)))
    return tuple(rows)


def seeds(job: Job) -> Iterator[int]:
    """Consecutive calibration seeds from the job's own."""
    yield from range(job.data.seed, job.data.seed + job.evaluate.seeds)


def pack_of(job: Job, bits: Bits) -> Pack:
    """The job's form of weights in a file; where all are too wide to be packed, none are."""
    return job.deploy.pack if bits.packable else "int8"


def quantization(job: Job, row: Row) -> Quantization:
    """The job's slice at a row's bits and method."""
    return structs.replace(
        job.quantization,
        bits=row.bits,
        method=row.method,
        options=all_of(shared_options(row.method, job.options)),
        rules=grid_rules(job.deploy.targets, int4_weights=pack_of(job, row.bits) == "int4"),
    )


def measured(work: Work, asked: Quantization, pack: Pack, seed: int, images: Images) -> dict[str, float]:
    """One calibration's figures."""
    bundle = work.stages.bundle(work.model, work.calibration_images(seed), asked)
    found = {"layer_error": layer_error(bundle.read(Bundle.load))}
    reference = work.reference_decisions(bundle, images)
    if not deployable(work.job.deploy.targets):
        return {"top1_reference": reference.top1()} | found
    onnx = work.graph_decisions(work.stages.graph(bundle, "onnx", pack), images)
    return {
        "top1_reference": reference.top1(),
        "top1_onnx": onnx.top1(),
        "agreement": reference.agreement(onnx),
    } | found


def measure_piece(work: Work, piece: Piece) -> None:
    """`measured` in another process, for the sake of the store."""
    if work.held_out is not None:
        measured(work, piece.asked, piece.pack, piece.seed, work.held_out)


def layer_error(bundle: Bundle) -> float:
    """Mean over the layers of the relative output error on the calibration rows."""
    return statistics.fmean(row.error for row in bundle.statistics.values())


def summary(results: list[dict[str, float]]) -> dict[str, Figures]:
    """Every figure over its values, in the order of the seeds."""
    return {name: figures([r[name] for r in results]) for name in results[0]}


def figures(values: list[float]) -> Figures:
    """Mean, sample standard deviation (0 of a single value), least and largest of the values."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Figures(mean=statistics.fmean(values), std=spread, min=min(values), max=max(values), all=tuple(values))
