"""The report as a Markdown page: its sentences, then its tables."""

from collections.abc import Iterator, Sequence

from erq_export.contract.report import Report

from . import tables


def markdown(report: Report) -> str:
    """The whole page. The first sentence stands above the title: it may say that nothing below means anything."""
    return "\n\n".join(_parts(report)) + "\n"


def _parts(report: Report) -> Iterator[str]:
    yield "  \n".join(report.headline)
    yield f"# {report.model.name} {report.quantization.bits}"
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
    yield "## Cost of each stage"
    yield table(*tables.stages(report.stages))
    yield "## Layers"
    yield table(*tables.layers(report))


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
