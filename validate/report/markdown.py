"""The report as a Markdown page: its sentences, then its sections."""

from collections.abc import Iterator, Sequence

from erq_export.contract.bench import Bench
from erq_export.contract.report import Report

from .sections import Section, sections
from .verdict import verdict


def markdown(report: Report, bench: Bench | None = None, *, picture: bool = False, command: Sequence[str] = ()) -> str:
    """The whole page. The verdict stands above the title: it may say that nothing below means anything.

    picture: bench.svg lies beside the page;  command: the words that the run was started with.
    """
    return "\n\n".join(_parts(report, bench, picture=picture, command=command)) + "\n"


def _parts(report: Report, bench: Bench | None, *, picture: bool, command: Sequence[str]) -> Iterator[str]:
    yield "  \n".join((verdict(report, bench), *report.headline[1:]))
    yield f"# {report.model.name} {report.quantization.bits.brief}"
    for section in sections(report, bench, command):
        yield from _section(section, picture="bench.svg" if picture and section.anchor == "speed" else "")


def _section(section: Section, *, picture: str) -> Iterator[str]:
    yield f"## {section.title}"
    yield from section.says
    if picture:
        yield f"![times as fast as the float twin]({picture})"
    for caption, cells in (*section.tables, *section.folded):
        if caption:
            yield caption
        yield table(*cells)
    if section.commands:
        width = max(len(typed) for typed, _ in section.commands)
        yield "```\n" + "\n".join(f"{typed:<{width}}  # {does}" for typed, does in section.commands) + "\n```"
    if section.notes:
        yield "\n".join(f"- {text}" for text in section.notes)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing in a cell ends it."""
    lines = [[_cell(text) for text in line] for line in (head, ["---"] * len(head), *body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
