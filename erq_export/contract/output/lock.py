"""One run at a time writes into a folder; the lock ends with its process, however that ends."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from erq_export.contract.errors import OutputError

from .owned import LOCK


@contextmanager
def alone(root: Path, shown: Path) -> Iterator[None]:
    """Hold the folder. OutputError where another process does, OSError where its lock file cannot be made."""
    lock = FileLock(root / LOCK, thread_local=False)
    try:
        with warnings.catch_warnings():
            # Where there are no file locks filelock takes a file with the process's id, which does as well here.
            warnings.simplefilter("ignore", UserWarning)
            lock.acquire(timeout=0)
    except Timeout as e:
        raise OutputError(
            f"another erq-export is writing into {shown}", fix="wait until it has ended, or --out with another folder"
        ) from e
    try:
        yield
    finally:
        with suppress(OSError):
            (root / LOCK).unlink()  # while it is held: filelock takes no lock on a file that has lost its name
        with suppress(OSError):
            lock.release()


def is_held(root: Path) -> bool:
    """Is another process writing into the folder? Never waits."""
    if not (root / LOCK).exists():
        return False
    try:
        with alone(root, root):
            return False
    except OutputError:
        return True
