"""A report's tables as plain cells, each a head and rows: the same on a terminal and on a page."""

from collections.abc import Sequence
from typing import TypeAlias

from erq_export.contract.accuracy import Accuracy, Share
from erq_export.contract.bench import Line
from erq_export.contract.cost import StageCost
from erq_export.contract.parity import in_words
from erq_export.contract.report import ComparisonRow, Figures, PriceRow, Report

BENCH_LEGEND = (
    "Measured in turns; ratios within a round, with their 95 % bootstrap interval; n: rounds, * where times had not settled "
    "before them; MiB of the file."
)
Table: TypeAlias = tuple[tuple[str, ...], list[list[str]]]  # head, rows


def comparison(rows: Sequence[ComparisonRow], accuracy: Accuracy | None = None) -> Table:
    """One line a setting: mean ± standard deviation and range over the seeds; the float model's first, where it is given."""
    head = ("bits", "method", "seeds", "top-1 % fake-quant", "top-1 % ONNX Runtime", "agreement %", "layer error")
    float_top1 = None if accuracy is None else accuracy.float_top1
    body = [] if float_top1 is None else [["float32", "", "", f"{float_top1.value:.2f}", "", "", ""]]
    body += [
        [
            row.bits.brief,
            row.method,
            str(len(row.top1_reference.all)),
            _range(row.top1_reference),
            _range(row.top1_onnx),
            "" if row.agreement is None else f"{row.agreement.mean:.2f}",
            f"{row.layer_error.mean:.4f}",
        ]
        for row in rows
    ]
    return head, body


def held_out(accuracy: Accuracy) -> Table:
    """One line a runner: what has a label or a class, and how far the outputs are from the float model's."""
    head = ("runner", "top-1 %", "top-5 %", "float model's class %", "lost, gained", "error", "cosine")
    body = [["float32", _share(accuracy.float_top1), _share(accuracy.float_top5), "", "", "", ""]]
    for name, judged in ({"reference": accuracy.reference} | accuracy.graphs).items():
        pair = judged.paired
        body.append(
            [
                name,
                *(_share(share) for share in (judged.top1, judged.top5, judged.agreement)),
                "" if pair is None else f"{pair.lost}, {pair.gained} (p = {pair.p:.2g})",
                in_words(judged.error),
                f"{judged.cosine:.4f}",
            ]
        )
    return head, body


def worst_classes(accuracy: Accuracy) -> Table:
    """The classes that lose most images from float to reference."""
    return ("class", "images", "right in float32", "right as the reference"), [
        [str(d.label), str(d.n_images), str(d.float_right), str(d.reference_right)] for d in accuracy.worst
    ]


def price(rows: Sequence[PriceRow]) -> Table:
    """One line a choice, mean ± standard deviation over the seeds. Every line keeps the choices of those above it."""
    head = ("then", "seeds", "top-1 %", "logits error", "layer error")
    return head, [
        [
            row.change,
            str(len(row.layer_error.all)),
            _spread(row.top1, 2),
            _spread(row.logits_error, 4),
            _spread(row.layer_error, 5),
        ]
        for row in rows
    ]


def stages(costs: Sequence[StageCost]) -> Table:
    """What each stage of the run cost."""
    return ("stage", "wall s", "peak MiB"), [[s.name, f"{s.wall_s:.1f}", f"{s.peak_mib:.0f}"] for s in costs]


def bench(lines: Sequence[Line]) -> Table:
    """One line a runner, batch and number of threads; `inputs` tells where the pixels lay."""
    head = (
        "what",
        "batch",
        "threads",
        "inputs",
        "p50 ms",
        "p90",
        "p99",
        "images/s",
        "times as fast (95 %)",
        "n",
        "MiB",
    )
    return head, [
        [
            line.name,
            str(line.batch),
            str(line.threads or ""),
            line.inputs,
            f"{line.p50_ms:.3f}",
            f"{line.p90_ms:.3f}",
            f"{line.p99_ms:.3f}",
            f"{line.images_per_s:.1f}",
            "twin" if line.speedup is None else line.speedup.told,
            str(line.samples) + "*" * (not line.settled),
            "" if line.bytes is None else f"{line.bytes / 2**20:.1f}",
        ]
        for line in lines
    ]


def layers(report: Report) -> Table:
    """Per layer: bits designed, container, what each target runs, output error on the calibration rows."""
    errors = ("error: inputs only", "error: then rounded", "error: as solved", "on images not solved for", "λ")
    return ("layer", "designed", *report.targets, *errors), [
        [
            layer.path,
            f"w{layer.w_bits}a{layer.a_bits}",
            *(f"{t.container}: {t.executed.get(layer.path, 'not read')}" for t in report.targets.values()),
            f"{layer.statistics.error_inputs:.5f}",
            f"{layer.statistics.error_nearest:.5f}",
            f"{layer.statistics.error:.5f}",
            "" if layer.statistics.error_unseen is None else f"{layer.statistics.error_unseen:.5f}",
            "" if layer.statistics.ridge is None else f"{layer.statistics.ridge:g}",
        ]
        for layer in report.layers
    ]


def _range(figures: Figures | None) -> str:
    if figures is None:
        return ""
    return f"{figures.mean:.2f} ± {figures.std:.2f} ({figures.min:.2f} … {figures.max:.2f})"


def _spread(figures: Figures | None, digits: int) -> str:
    return "" if figures is None else f"{figures.mean:.{digits}f} ± {figures.std:.{digits}f}"


def _share(share: Share | None) -> str:
    return "" if share is None else share.told
