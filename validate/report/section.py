"""One section of a report, the same on every page."""

from dataclasses import dataclass

from .tables import Table


@dataclass(frozen=True, kw_only=True)
class Section:
    """anchor: its name in links, and that of its picture;  says: sentences above the tables, notes: a list below them;
    tables: each with its caption, which may be empty;  folded: long tables, shown when asked for where a page can do so;
    commands: what to type, and what it does."""

    anchor: str
    title: str
    says: tuple[str, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    folded: tuple[tuple[str, Table], ...] = ()
    notes: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
