"""Tables of contents: a name leads to "module:attribute", resolved when asked for; a wrong name meets its neighbours."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from erq_export.contract.errors import SpecError

LONGEST = 100  # characters of a wrong name that are compared and repeated
METHODS: dict[str, str] = {
    "erq": "erq_export.calibrate.methods.erq:METHOD",
    "gptq": "erq_export.calibrate.methods.gptq:METHOD",
    "repq": "erq_export.calibrate.methods.repq:METHOD",
    "rtn": "erq_export.calibrate.methods.rtn:METHOD",
}


def nearest(name: str, known: Iterable[str], *, n: int = 3) -> list[str]:
    """The known names that look most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)


def unknown(kind: str, name: str, known: Iterable[str]) -> SpecError:
    """The error for a name that is not in the table: what is near it, or else everything there is."""
    known = sorted(known)
    close = nearest(name[:LONGEST], known)
    fix = f"did you mean {' or '.join(close)}?" if close else f"one of: {', '.join(known)}"
    shown = repr(name if len(name) <= LONGEST else f"{name[:LONGEST]}…")
    return SpecError(f"unknown {kind} {shown}", fix=fix)


def resolve(kind: str, name: str, table: dict[str, str]) -> Any:
    """Import and return what `table[name]` = "module:attribute" points at. SpecError for a name not in it."""
    if name not in table:
        raise unknown(kind, name, table)
    return resolve_attribute(table[name])


def resolve_attribute(where: str) -> Any:
    """Import and return what "module:attribute" points at."""
    module, attribute = where.split(":")
    return getattr(importlib.import_module(module), attribute)
