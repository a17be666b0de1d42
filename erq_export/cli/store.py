"""`erq-export store`: what is kept from earlier runs, and how to be rid of it."""

import re
from datetime import timedelta
from pathlib import Path

import rich_click as click

from erq_export.cli.places import PLACE
from erq_export.contract.errors import SpecError
from erq_export.flow.store.settings import default_root, in_words
from erq_export.flow.store.shelf import Kept
from erq_export.flow.store.store import Store

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@click.command()
@click.option("--store", "at", type=PLACE, metavar="DIR", help="another store than the user's")
@click.option("--clear", is_flag=True, help="remove everything, or what --kind and --older-than say")
@click.option("--kind", help="only artifacts of this kind, such as bundle, graph or engine")
@click.option("--older-than", metavar="AGE", help="with --clear: only what was not used for so long: 30m, 12h, 7d, 4w")
def store(at: Path | None, *, clear: bool, kind: str | None, older_than: str | None) -> None:
    """Show what is kept from earlier runs, least recently used first; --clear removes it.

    What is in use by a run is left. A store that is removed by other means is made again.
    """
    if older_than is not None and not clear:
        raise SpecError("--older-than without --clear", fix="--clear --older-than 7d")
    age = None if older_than is None else _age(older_than)
    with Store.at(at, explicit=True) as kept:
        if clear:
            removed, left = kept.clear(kind=kind, older_than=age)
            click.echo(f"removed {len(removed)} artifacts, {in_words(sum(item.size for item in removed))}")
            if left:
                click.echo(f"{len(left)} are in use and stay")
            return
        found = [item for item in kept.contents() if kind in (None, item.kind)]
        for item in found:
            click.echo(_line(item))
        total = in_words(sum(item.size for item in found))
        click.echo(f"{len(found)} artifacts, {total}, in {at or default_root()}; at most {in_words(kept.limit_bytes)}")


def _line(item: Kept) -> str:
    used = item.last_used.astimezone().strftime("%Y-%m-%d %H:%M")
    return f"{item.kind:10s} {in_words(item.size):>10s}  {used}  {item.description}"


def _age(text: str) -> timedelta:
    """A span such as 12h. SpecError for another form."""
    match = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if match is None:
        raise SpecError(f"--older-than {text[:40]!r} is no span of time", fix="a number and m, h, d or w, such as 7d")
    return timedelta(**{UNITS[match[2]]: int(match[1])})
