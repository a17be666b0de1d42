"""`erq-export bench OUT`: how fast what a run made is on this machine, beside its float twin."""

import re
from pathlib import Path
from typing import Any

import rich_click as click

from erq_export.cli.opened import opened
from erq_export.cli.options import options_of, store_options
from erq_export.cli.places import PLACE
from erq_export.contract.bench import BenchSpec
from erq_export.contract.errors import SpecError
from erq_export.contract.records import checked_value, hints

LISTS = ("batch", "threads")  # typed 1,8, or repeated
NAMES = ("batch", "threads", "samples", "seconds", "sittings", "also", "against", "trust_engine", "require_speedup")


@click.command()
@click.argument("out", type=PLACE)
@options_of(BenchSpec, NAMES)
@store_options
def bench(out: Path, store: Path | None, no_store: bool, **given: Any) -> None:
    """Time every graph and engine of a run that this machine can run, in turns with its float twin.

    Writes bench.json and a section of report.md and report.html. Exit code 7 where --require-speedup is not shown.
    """
    asked = spec_of(given)
    from erq_export.flow.job import read_run

    job = read_run(out)
    from erq_export.flow import bench as flow
    from erq_export.flow.terminal import Terminal

    terminal = Terminal()
    with opened(store, no_store) as kept:
        flow.bench(job, out, terminal, store=kept, asked=asked, show=terminal.bench)


def spec_of(given: dict[str, Any]) -> BenchSpec:
    """What the words mean. SpecError for a value that is none."""
    trust = bool(given.pop("trust_engine", False))
    typed = {name: value for name, value in given.items() if value not in (None, ())}
    for name in LISTS:
        if name in typed:
            typed[name] = _numbers(BenchSpec.word(name), typed[name])
    if "also" in typed:
        typed["also"] = tuple(dict.fromkeys(typed["also"]))
    rules = hints(BenchSpec)
    words = {n: checked_value(v, rules[n], word=BenchSpec.word(n), text=True) for n, v in typed.items()}
    return BenchSpec(**words, trust_engine=trust)


def _numbers(word: str, texts: tuple[str, ...]) -> tuple[int, ...]:
    """1,8 as numbers."""
    parts = [part for text in texts for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"[0-9]{1,9}", part):
            raise SpecError(
                f"{word} {part[:40]!r} is no number", fix=f"numbers with commas between, such as {word} 1,8"
            )
    return tuple(int(part) for part in parts)
