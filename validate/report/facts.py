"""What surrounds the measurements, in tables: sizes, latency, what it was made of and where, how to run it again."""

import shlex
from collections.abc import Sequence

from erq_export.contract.report import Latency, Report

from .coverage import mean_weight_bits
from .tables import Table

MIB = 2**20
AGAIN = {  # run in the folder of the report, which can be moved
    "erq-export reproduce manifest.json": "makes bundle, graphs and engines again, keeping nothing, and says what differs first",
    "erq-export validate .": "measures again and writes this report again",
    "erq-export bench .": "times everything that this machine can run, beside its float twin; adds its section here",
    "erq-export inspect .": "says on a terminal what the report says",
}


def sizes(report: Report) -> Table:
    """MiB of every graph: the file, its tensors in each form, and its engine."""
    head = (
        "target",
        "file MiB",
        "tensors in float32",
        "with int8 weights",
        "packed in INT4",
        "as written",
        "engine MiB",
    )
    return head, [
        [
            name,
            f"{target.bytes / MIB:.2f}",
            *(f"{n / MIB:.2f}" for n in (target.sizes.float32, target.sizes.int8, target.sizes.int4)),
            f"{target.sizes.written / MIB:.2f}",
            f"{sum(engine.bytes for engine in target.engines.values()) / MIB:.2f}" if target.compiled else "",
        ]
        for name, target in report.targets.items()
    ]


def latency(found: Latency) -> Table:
    """One line a runner, the baseline first: milliseconds a batch, and times as fast with quartiles."""
    head = ("runner", "p50 ms", "p90", "p99", "mean", "least", "times as fast (quartiles)")
    return head, [
        [
            name,
            *(f"{ms:.3f}" for ms in (time.p50_ms, time.p90_ms, time.p99_ms, time.mean_ms, time.min_ms)),
            f"{r.median:.2f} × ({r.q25:.2f} … {r.q75:.2f})" if (r := found.ratios.get(name)) else "baseline",
        ]
        for name, time in found.timings.items()
    ]


def made_of(report: Report) -> Table:
    """Model, bits, method with its options, images, and the bundle's hash."""
    spec, model = report.quantization, report.model
    mean = mean_weight_bits(report)
    rows = {
        "erq-export": report.erq_export,
        "model": model.timm_name,
        "weights": model.weights + ("" if model.weights_sha256 is None else f", sha256 {model.weights_sha256}"),
        "input": " × ".join(map(str, model.preprocess.input_size)),
        "bits": str(spec.bits) + ("" if mean is None else f" (mean weight bits {mean:.2f})"),
        "method": spec.method,
        "options": ", ".join(f"{name}={_word(value)}" for name, value in spec.options.items()),
        "attention": spec.attention,
        "targets": ", ".join(report.targets_asked),
        "calibrated on": f"{report.data.n_images} images, sha256 of their pixels {report.data.pixels_sha256}",
        "bundle": f"sha256 {report.bundle_sha256}",
    }
    return ("what", "value"), [list(row) for row in rows.items()]


def where(report: Report) -> Table:
    """Machine and versions."""
    return ("what", "value"), [list(row) for row in (*report.machine.items(), *report.versions.items())]


def again(command: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Commands with what they do: what was typed, then what the folder can do itself."""
    typed = shlex.join(("erq-export", *command)) if command else ""
    first = ((typed, "what was typed"),) if typed else ()
    return (*first, *AGAIN.items())


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
