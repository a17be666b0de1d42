"""What a Python caller may give for `store` and `ui`, and what is meant by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from erq_export.contract.errors import SpecError
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT, Ui

Where = Literal["terminal"] | Ui | None
Kept = Store | Path | str | bool | None


@contextmanager
def opened(store: Kept) -> Iterator[Store]:
    """The store asked for; one that was given open stays open."""
    if isinstance(store, Store):
        yield store
        return
    path = None if store is None or store is True else store
    made = Store.none() if path is False else Store.at(None if path is None else Path(path), explicit=path is not None)
    with made:
        yield made


def shown(ui: Where) -> Ui:
    if ui is None:
        return SILENT
    if ui == "terminal":
        from erq_export.flow.terminal import Terminal

        return Terminal()
    if isinstance(ui, str):
        raise SpecError(f"ui={ui!r}", fix='ui="terminal", an object of your own, or nothing')
    return ui
