"""The report as a Markdown page: its sentences, then its tables."""

from collections.abc import Iterator, Sequence

from erq_export.contract.bench import Bench
from erq_export.contract.report import Report

from . import tables


def markdown(report: Report, bench: Bench | None = None, *, picture: bool = False) -> str:
    """The whole page. The first sentence stands above the title: it may say that nothing below means anything.

    picture: bench.svg lies beside the page.
    """
    return "\n\n".join(_parts(report, bench, picture=picture)) + "\n"


def _parts(report: Report, bench: Bench | None, *, picture: bool) -> Iterator[str]:
    yield "  \n".join(report.headline)
    yield f"# {report.model.name} {report.quantization.bits.brief}"
    if report.accuracy is not None:
        yield f"## {report.accuracy.n_images} held-out images"
        yield table(*tables.held_out(report.accuracy))
        if report.accuracy.worst:
            yield "Classes that lose most:"
            yield table(*tables.worst_classes(report.accuracy))
    if report.comparison:
        yield "## Comparison"
        yield table(*tables.comparison(report.comparison))
    if report.price:
        yield "## From the published scheme to what is deployed"
        yield table(*tables.price(report.price))
    if bench is not None:
        yield from _speed(bench, picture=picture)
    yield "## Cost of each stage"
    yield table(*tables.stages(report.stages))
    yield "## Layers"
    yield table(*tables.layers(report))


def _speed(bench: Bench, *, picture: bool) -> Iterator[str]:
    yield "## Speed"
    yield f"{bench.processor}; cores {', '.join(map(str, bench.cores))}. " + tables.BENCH_LEGEND
    if picture:
        yield "![times as fast as the float twin](bench.svg)"
    yield table(*tables.bench(bench.lines))
    yield "\n".join(f"- {text}" for text in (*bench.notes, *(f"PROBLEM: {p}" for p in bench.problems)))


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
