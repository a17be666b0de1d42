"""The pictures of report.html, each by the anchor of its section; none where matplotlib is not installed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from erq_export.contract.accuracy import Accuracy, Share
from erq_export.contract.bench import Bench
from erq_export.contract.report import Latency, Layer, Report
from erq_export.contract.story import LayerCost, Story, sqnr_db

from . import detection
from .ink import INKS, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_IN, AROUND_IN = 0.17, 0.75  # inches of a row, and of what stands above and below the rows
MOST_ROWS = 80  # of Swin-B's 100 layers the others are in the table
SMALLEST = 1e-12  # errors of 0 have no place on a logarithmic axis
MARKS = ("o", "s", "^")
LAYER_ERRORS = {
    "error_nearest": "weights rounded to nearest",
    "error": "as solved",
    "error_inputs": "inputs quantized, weights not",
}
DEPTH = {"weights": "weights alone", "activations": "inputs alone", "both": "both"}
Interval = tuple[str, float, float, float]  # name, value, low, high


def pictures(report: Report, bench: Bench | None = None) -> dict[str, str]:
    """SVG elements by section."""
    drawn = {anchor: draw() for anchor, draw in _drawings(report, bench)}
    return {anchor: svg for anchor, svg in drawn.items() if svg is not None}


def _drawings(report: Report, bench: Bench | None) -> Iterator[tuple[str, Callable[[], str | None]]]:
    if report.detection is not None:
        yield "detection", partial(detection.pictures, report.detection)
    if report.accuracy is not None and (shares := _shares(report.accuracy)):
        what = "top-1" if report.accuracy.float_top1 is not None else "the float model's class"
        label = f"{what} in per cent of {report.accuracy.n_images} images, 95 % interval"
        yield "accuracy", partial(intervals, "accuracy", shares, label)
    if bench is not None and (lines := _speedups(bench)):
        yield "speed", partial(intervals, "speed", lines, "times as fast as the float twin, 95 % interval", beside=1.0)
    if report.latency is not None and report.latency.ratios:
        label = "times as fast as float32, quartiles"
        yield "latency", partial(intervals, "latency", _ratios(report.latency), label, beside=1.0)
    if report.story is not None and report.story.depth:
        yield "depth", partial(_depth, report.story)
    if report.story is not None and report.story.sensitivity:
        yield "sensitivity", partial(_sensitivity, report.story)
    if report.layers:
        yield "layers", partial(_layers, report.layers)


def _shares(accuracy: Accuracy) -> list[Interval]:
    judged = {"reference": accuracy.reference} | accuracy.graphs
    if accuracy.float_top1 is not None:
        found: Mapping[str, Share | None] = {"float32": accuracy.float_top1} | {n: j.top1 for n, j in judged.items()}
    else:
        found = {name: j.agreement for name, j in judged.items()}
    return [(name, share.value, share.low, share.high) for name, share in found.items() if share is not None]


def _speedups(bench: Bench) -> list[Interval]:
    return [
        (
            f"{line.name}\nbatch {line.batch}" + f", {line.threads} threads" * (line.threads > 0),
            *(line.speedup.ratio, line.speedup.low, line.speedup.high),
        )
        for line in bench.lines
        if line.speedup is not None and line.inputs == "resident"
    ]


def _ratios(latency: Latency) -> list[Interval]:
    return [(name, ratio.median, ratio.q25, ratio.q75) for name, ratio in latency.ratios.items()]


def intervals(name: str, rows: Sequence[Interval], label: str, *, beside: float | None = None) -> str | None:
    """A point and its interval a row; beside: a line that they are read against."""

    def paint(axes: "Axes") -> None:
        for place, (_, value, low, high) in enumerate(rows):
            spread = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
            ink = INKS["bad"] if beside is not None and low <= beside else INKS["first"]
            axes.errorbar([value], [place], xerr=spread, fmt="o", capsize=4, color=ink)
        if beside is not None:
            axes.axvline(beside, color=INKS["ink"], linewidth=0.8)
        axes.locator_params(axis="x", nbins=5)
        _label(axes, label)
        _rows(axes, [row[0] for row in rows])

    return picture(name, AROUND_IN + 0.27 * len(rows), f"{label}: {_told(rows)}", paint)


def _depth(story: Story) -> str | None:
    blocks = story.depth

    def paint(axes: "Axes") -> None:
        for (field, says), ink, mark in zip(DEPTH.items(), ("first", "second", "third"), MARKS, strict=True):
            values = [_finite(sqnr_db(getattr(block, field))) for block in blocks]
            axes.plot(values, marker=mark, markersize=4, linewidth=1.2, color=INKS[ink], label=says)
        axes.set_xticks(range(len(blocks)), [_short(block.path, 20) for block in blocks], rotation=90)
        axes.set_ylabel("signal over error, dB")
        axes.figure.legend(loc="outside upper center", ncols=3)

    return picture("depth", 3.2, "signal over quantization error in dB, block by block", paint)


def _sensitivity(story: Story) -> str | None:
    costs: Sequence[LayerCost] = story.sensitivity[:MOST_ROWS]

    def paint(axes: "Axes") -> None:
        values = [cost.alone for cost in costs]
        axes.barh(
            range(len(costs)), values, height=0.6, color=INKS["first"], label="error with this layer alone quantized"
        )
        gained = [story.error - cost.raised for cost in costs]
        axes.plot(gained, range(len(costs)), linestyle="", marker="D", markersize=3.5, color=INKS["second"])
        axes.locator_params(axis="x", nbins=4)
        _label(axes, "bar: error alone; diamond: error that 8 bits there give back")
        _rows(axes, [cost.path for cost in costs])

    return picture("sensitivity", AROUND_IN + ROW_IN * len(costs), "what each layer costs and would give back", paint)


def _layers(every: Sequence[Layer]) -> str | None:
    layers = every[:MOST_ROWS]

    def paint(axes: "Axes") -> None:
        for (field, says), ink, mark in zip(LAYER_ERRORS.items(), ("second", "first", "third"), MARKS, strict=True):
            values = [max(getattr(layer.statistics, field), SMALLEST) for layer in layers]
            axes.plot(
                values, range(len(layers)), linestyle="", marker=mark, markersize=3.5, color=INKS[ink], label=says
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
        _label(axes, "output error / output energy")
        _rows(axes, [layer.path for layer in layers])
        axes.figure.legend(loc="outside upper left", ncols=2, columnspacing=0.8, handletextpad=0.1)

    return picture("layers", AROUND_IN + 0.3 + ROW_IN * len(layers), "output error of every layer", paint)


def _label(axes: "Axes", text: str) -> None:
    """Below the whole picture: names beside the axes leave little room below them."""
    axes.figure.supxlabel(text, fontsize=8.5)


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    """One name a row, the first on top."""
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def _short(name: str, most: int = 30) -> str:
    """A name that leaves room for the picture, each of its lines."""
    lines = ("".join(c if c.isprintable() else "?" for c in line) for line in name.split("\n"))
    return "\n".join(line if len(line) <= most else f"{line[: most - 1]}…" for line in lines)


def _told(rows: Sequence[Interval]) -> str:
    return "; ".join(
        f"{' '.join(name.split())} {value:.2f} ({low:.2f} to {high:.2f})" for name, value, low, high in rows
    )


def _finite(value: float) -> float:
    """A gap in the place of infinity."""
    return value if math.isfinite(value) else math.nan
