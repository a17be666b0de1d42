"""A file or folder that somebody names: what it is is asked before it is opened, and its name can always be printed."""

import os
import stat
from pathlib import Path

from erq_export.contract.errors import DataError

LONGEST_SHOWN = 300  # characters of a name in a message
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def encodable(name: str) -> str:
    r"""The name as UTF-8 can hold it: bytes of a file name that are not UTF-8 become \xff and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if _has_surrogates(name) else name


def shown(name: Path | str) -> str:
    """The name as a message may print it: one line, no control characters, not longer than a paragraph."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in encodable(str(name)[: 4 * LONGEST_SHOWN]))
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def regular_file(path: Path, what: str, *, fix: str) -> os.stat_result:
    """What the system says of a file that can be read to its end. DataError for one that is missing, lies behind a loop of
    links, has a name no file can have, or is a folder, a pipe, a socket or a device: reading those may never end."""
    try:
        found = path.stat()
    except FileNotFoundError as e:
        raise DataError(f"there is no {what} {shown(path)}", fix=fix) from e
    except (OSError, ValueError) as e:  # ValueError: a name with a NUL
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise DataError(f"cannot read the {what} {shown(path)}: {reason}", fix=fix) from e
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise DataError(f"cannot read the {what} {shown(path)}: it is {kind}", fix=fix)
    return found


def _has_surrogates(name: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in name)
