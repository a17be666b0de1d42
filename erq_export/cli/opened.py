"""The store that a command works over, opened as its options say."""

from pathlib import Path

import rich_click as click

from erq_export.contract.errors import SpecError
from erq_export.flow.store.store import Store


def opened(store: Path | None, no_store: bool) -> Store:
    """SpecError for both options at once, OutputError or MachineError for a named store that cannot be used."""
    if no_store and store is not None:
        raise SpecError("--store and --no-store exclude each other", fix="one of them")
    return Store.none() if no_store else Store.at(store, explicit=store is not None, say=click.echo)
