"""What every benchmark shares: its words, its machine, and the two files of a result (its page: pages/NAME.md.j2)."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from erq_export.backends.machine import processor
from erq_export.contract.errors import ErqError
from erq_export.contract.files import write_json, write_text
from erq_export.flow.store.store import Store

Row = Mapping[str, Any]
RESULTS, PAGES = (Path(__file__).parent / name for name in ("results", "pages"))


def parser(doc: str | None, *, out: Path | None = RESULTS, seeds: int | None = None) -> argparse.ArgumentParser:
    """--out and --store, and --seeds where a benchmark has some."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=out, required=out is None, help="folder for the results")
    made.add_argument("--store", type=Path, help="folder of what was made before (default: the user's)")
    if seeds is not None:
        made.add_argument("--seeds", type=int, default=seeds, help="calibration seeds, from 0")
    return made


def opened(words: argparse.Namespace) -> Store:
    """The store that was asked for."""
    return Store.at(words.store, explicit=words.store is not None, say=print)


def start(main: Callable[[], None]) -> None:
    """Run a benchmark; a user's error is told in a line, with its exit code."""
    try:
        main()
    except ErqError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)


def machine(*packages: str) -> dict[str, Any]:
    """Where it ran."""
    found = {"processor": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    return found | {name: version(name) for name in packages}


def write(out: Path, name: str, report: Row) -> None:
    """NAME.json, and NAME.md from the template of that name."""
    pages = Environment(
        loader=FileSystemLoader(PAGES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    pages.filters |= {"f": format, "spread": spread, "told": told}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", dict(report))
    write_text(out / f"{name}.md", pages.get_template(f"{name}.md.j2").render(report) + "\n")


def spread(figure: Row, form: str, deviation: str = "") -> str:
    """Mean ± standard deviation of a figure that `summary` made."""
    return f"{figure['mean']:{form}} ± {figure['std']:{deviation or form}}"


def told(machine: Row) -> str:
    """The last line of a page."""
    rest = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("processor", "threads"))
    return f"{machine['processor']}; {machine['threads']} threads; {rest}."


def show(name: Row, figures: Mapping[str, Row]) -> None:
    """A finished row, for who watches."""
    means = (f"{figure} {found['mean']:.4g} ± {found['std']:.2g}" for figure, found in figures.items())
    print(*name.values(), *means, sep="  ", flush=True)


def noise(folder: Path, n: int) -> str:
    """A folder of n images of noise, for models with random weights: speed and size do not depend on the values."""
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{i:04d}.png")
    return str(folder)
