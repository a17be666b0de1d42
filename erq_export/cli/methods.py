"""`erq-export methods [NAME]`: the methods, and the options that each takes as -O NAME=VALUE."""

from typing import Any

import rich_click as click

from erq_export.calibrate.methods.method import method_named
from erq_export.cli.options import default_of
from erq_export.contract.records import Spec, choices, hints, meta
from erq_export.contract.registry import METHODS


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or one method's options: default, range and meaning of each."""
    if name is None:
        for known in METHODS:
            click.echo(f"{known:6s} {method_named(known).meaning}")
        click.echo("\nerq-export methods NAME lists a method's options.")
        return
    method = method_named(name)
    click.echo(f"{method.name}: {method.meaning}\n\noptions, as -O NAME=VALUE:")
    rows = [("name", "default", "range", "meaning"), *described(method.options)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))


def described(options: type[Spec]) -> list[tuple[str, str, str, str]]:
    """(name, default, range, meaning) of every option."""
    return [
        (option, _shown(default_of(options, option)), allowed(rule), str(meta(rule).description))
        for option, rule in hints(options).items()
    ]


def allowed(annotation: Any) -> str:
    """The values that a field takes, in words."""
    if known := choices(annotation):
        return " | ".join(known)
    for part in (annotation, *getattr(annotation, "__args__", ()), *_inner(annotation)):
        rule = meta(part)
        low = f"> {rule.gt:g}" if rule.gt is not None else f">= {rule.ge:g}" if rule.ge is not None else ""
        high = f"<= {rule.le:g}" if rule.le is not None else ""
        if low or high:
            return " and ".join(filter(None, (low, high)))
    return "true | false"


def _inner(annotation: Any) -> tuple[Any, ...]:
    """The members of an optional type behind its own description."""
    return tuple(member for part in getattr(annotation, "__args__", ()) for member in getattr(part, "__args__", ()))


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
