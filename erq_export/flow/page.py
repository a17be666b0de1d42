"""What a sweep found, as NAME.json and, from a template, as NAME.md; and where it ran."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from erq_export.backends.machine import processor
from erq_export.contract.files import write_json, write_text

Row = Mapping[str, Any]


def machine(*packages: str) -> dict[str, Any]:
    """Processor, threads, versions of Python and of these packages."""
    found = {"processor": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    return found | {name: version(name) for name in packages}


def told(machine: Row) -> str:
    """A machine in a sentence, for the end of a page."""
    rest = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("processor", "threads"))
    return f"{machine['processor']}; {machine['threads']} threads; {rest}."


def spread(figure: Row, form: str, deviation: str = "") -> str:
    """Mean ± standard deviation of a figure that `summary` made."""
    return f"{figure['mean']:{form}} ± {figure['std']:{deviation or form}}"


def write(report: Row, out: Path, template: Path, *, called: str | None = None) -> None:
    """For a template NAME.md.j2, NAME.json with the report and NAME.md with the filled-in template in the folder `out`;
    `called` in the place of NAME.

    Templates have the filters `f` (Python's format), `spread` and `told`; a name that the report lacks is an error.
    """
    folder = FileSystemLoader(template.parent)
    pages = Environment(
        loader=folder, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    pages.filters |= {"f": format, "spread": spread, "told": told}
    name = called or template.name.removesuffix(".md.j2")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", dict(report))
    write_text(out / f"{name}.md", pages.get_template(template.name).render(report) + "\n")
