"""What every benchmark shares: its words, the store, and where its results and page lie (pages/NAME.md.j2)."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import numpy as np
import torch
from PIL import Image

from erq_export.contract.errors import ErqError
from erq_export.contract.records import plain_of
from erq_export.contract.registry import unknown
from erq_export.flow import page
from erq_export.flow.compare import summary
from erq_export.flow.store.store import Store

FOLDER = Path(__file__).parent


def words(doc: str | None, defaults: Mapping[str, Any], given: Sequence[str] | None = None) -> argparse.Namespace:
    """--out, --store and an option for each default, of its type.

    A tuple's takes several words, () of text and by default those of each model; True's is --no-NAME, False's takes none;
    None: a path, if one is wanted; Path itself: one that must be given.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in ({"out": FOLDER / "results", "store": None} | dict(defaults)).items():
        word = name.replace("_", "-")
        if default is True:
            parser.add_argument(f"--no-{word}", dest=name, action="store_false")
        elif default is False:
            parser.add_argument(f"--{word}", action="store_true")
        elif default is None or default is Path:
            parser.add_argument(f"--{word}", type=Path, required=default is Path, metavar="PATH")
        else:
            many = isinstance(default, tuple)
            example = next(iter(default), "") if many else default
            kind = Path if isinstance(example, Path) else type(example)
            text = "default: " + ("%(default)s" if default != () else "as the model has them")
            parser.add_argument(f"--{word}", type=kind, nargs="+" if many else None, default=default, help=text)
    return parser.parse_args(given)


def check_known(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """SpecError for a name that is none of the known ones."""
    for name in given:
        if name not in (names := list(known)):
            raise unknown(kind, name, names)


def opened(words: argparse.Namespace) -> Store:
    """The store that was asked for, else the user's."""
    return Store.at(words.store, explicit=words.store is not None, say=print)


def start(main: Callable[[], None], *, threads: int | None = None) -> None:
    """Run a benchmark, on so many threads where sums shall have one order; a user's error is told in a line."""
    torch.set_num_threads(threads or torch.get_num_threads())
    try:
        main()
    except ErqError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)


def write(words: argparse.Namespace, name: str, report: page.Row, *, called: str | None = None) -> None:
    """NAME.json and NAME.md, or `called` in the place of NAME."""
    page.write(report, words.out, FOLDER / "pages" / f"{name}.md.j2", called=called)


def figures(results: list[dict[str, float]]) -> dict[str, page.Row]:
    """Every figure's mean, deviation and range over the seeds, as plain data."""
    return {name: plain_of(figure) for name, figure in summary(results).items()}


def show(name: page.Row, figures: Mapping[str, page.Row]) -> None:
    """A finished row, for who watches."""
    cells = (f"{n} {page.spread(row, '.4g', '.2g')}" for n, row in figures.items())
    print(*name.values(), *cells, sep="  ", flush=True)


def noise(folder: Path, n: int) -> str:
    """A folder of n images of noise, for models with random weights: speed and size do not depend on the values."""
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{i:04d}.png")
    return str(folder)
