"""The report as one HTML page that needs nothing else: no network, no script, no file beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from erq_export.contract.bench import Bench
from erq_export.contract.report import Report

from .bars import bars
from .coverage import designed
from .pictures import pictures
from .ranges import captions
from .sections import sections
from .tables import Table
from .tiles import tiles
from .verdict import outcome, verdict

TEMPLATES = Path(__file__).parent / "templates"
MOST_SENTENCES = 30  # more are a run in which every layer has a problem
NUMBER = re.compile(r"[-−+]?\d.*|\S*exact|")


@dataclass(frozen=True, kw_only=True)
class Card:
    """One layer's histograms; inputs: None where the input stays float."""

    path: str
    designed: str
    weights: Markup
    inputs: Markup | None
    captions: tuple[str, str]


def html(report: Report, bench: Bench | None = None, *, command: Sequence[str] = ()) -> str:
    """The whole page; equal records give equal text. command: the words that the run was started with."""
    return page(
        "report.html.j2",
        report=report,
        outcome=outcome(report, bench),
        verdict=verdict(report, bench),
        says=report.headline[1:],
        most=MOST_SENTENCES,
        tiles=tiles(report, bench),
        sections=tuple(sections(report, bench, command)),
        pictures={anchor: Markup(svg) for anchor, svg in pictures(report, bench).items()},
        cards=cards(report),
        timed=bench is not None,
    )


def page(template: str, **values: object) -> str:
    """A filled-in template; whatever is no `Markup` is escaped."""
    return _pages().get_template(template).render(**values)


@cache
def _pages() -> Environment:
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    pages.filters |= {"numeric": numeric, "breakable": breakable}
    return pages


def cards(report: Report) -> tuple[Card, ...]:
    """Of every layer whose integers were counted."""
    if report.histograms is None:
        return ()
    bits = {layer.path: designed(layer) for layer in report.layers}
    return tuple(
        Card(
            path=path,
            designed=bits.get(path, ""),
            weights=Markup(bars(layer.weights, "histogram of the weights' codes")),
            inputs=None if layer.inputs is None else Markup(bars(layer.inputs.codes, "histogram of the input's codes")),
            captions=captions(layer),
        )
        for path, layer in report.histograms.layers.items()
    )


def numeric(table: Table) -> list[bool]:
    """For every column whether it holds numbers, which stand below each other to the right."""
    head, body = table
    return [i > 0 and bool(body) and all(NUMBER.fullmatch(row[i]) for row in body) for i in range(len(head))]


def breakable(text: str) -> Markup:
    """Escaped, and where a line is too narrow for it, broken behind a dot."""
    return Markup(str(escape(text)).replace(".", ".<wbr>"))
