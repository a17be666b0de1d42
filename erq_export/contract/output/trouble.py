"""What the file system refuses, as an OutputError that says what to do."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erq_export.contract.errors import ErqError, OutputError
from erq_export.contract.run_manifest import PARTIAL

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ALWAYS_THE_PLACE = FULL | {errno.EROFS, errno.EFBIG}  # no reader of anything else gets these
_HIDDEN = re.compile(rf"/{PARTIAL}(/.*)?$")  # names of ours that mean nothing to the user
_FIXES = {
    **dict.fromkeys(FULL, "free some space, or --out on another disk"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "--out with a folder that can be written"),
    errno.ENAMETOOLONG: "--out with a shorter path",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or --out on another file system",
    errno.ENOENT: "the folder went away meanwhile: run again, with --out in a place that stays",
}


def refusal(path: Path, error: OSError) -> OutputError:
    """The error as the user reads it; `path` is the folder as it was given."""
    named = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    place = _HIDDEN.sub("", named)
    where = f" ({place})" if place and place != str(path) else ""
    return OutputError(
        f"cannot write {path}: {error.strerror or error}{where}",
        fix=_FIXES.get(error.errno or 0, "look at the disk, or --out elsewhere"),
    )


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Around our own work with files: an OSError becomes an OutputError about the output folder `path`."""
    try:
        yield
    except OSError as e:
        raise refusal(path, e) from e


@contextmanager
def told_of_a_stage(path: Path, root: Path) -> Iterator[None]:
    """Around a stage's work, which reads other files too: only errors of the place that it writes to become an OutputError."""
    try:
        yield
    except ErqError:
        raise
    except Exception as e:
        if (found := _error_of_place(e, root)) is not None:
            raise refusal(path, found) from e
        raise


def _error_of_place(error: BaseException, root: Path) -> OSError | None:
    """The OSError in a chain that is about files below `root`; write() names no file, other languages keep only words."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno is not None:
            named = isinstance(error.filename, (str, bytes))
            ours = named and Path(os.fsdecode(error.filename)).is_relative_to(root)
            if ours or (not named and error.errno in _ALWAYS_THE_PLACE):
                return error
        for code in FULL:
            if os.strerror(code) in str(error):
                return OSError(code, os.strerror(code))
        following = error.__cause__ or error.__context__
        if following is None:
            return None
        error = following
    return None
