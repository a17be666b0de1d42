"""Locks of a store's keys: one maker at a time, any number of readers, none outliving its process.

Every lock is the operating system's (flock through filelock): it ends with its process, however that ends. A maker holds
`<kind>.<key>.lock`. A reader holds a lock file of its own, which it makes while it holds the key's lock. So whoever holds
the key's lock and finds no live reader knows that nobody reads and nobody can begin to.
"""

import errno
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from erq_export.flow.store.trouble import trouble

PATIENCE_S = 2.0  # a wait longer than this is worth a line to the user


class KeyLocks:
    """The lock files of one store, in `folder` (made here). Safe between threads and between processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.readers = folder / "readers"

    def prepare(self) -> None:
        """Make the folder, and prove that locks work there. StoreTrouble where not."""
        with trouble(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # filelock's, before it turns to locks that we refuse
            self.readers.mkdir(parents=True, exist_ok=True)
            probe = FileLock(self.readers / f"probe.{uuid.uuid4().hex}", thread_local=False)
            _acquire(probe, timeout=0)
            _drop(probe)

    @contextmanager
    def making(self, kind: str, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the key, waiting for whoever holds it; `waiting()` is called once where that takes long."""
        lock = self._lock(kind, key)
        with trouble():
            try:
                _acquire(lock, timeout=PATIENCE_S)
            except Timeout:
                waiting()
                _acquire(lock, timeout=-1)
        try:
            yield
        finally:
            with suppress(OSError):
                lock.release()

    @contextmanager
    def idle(self, kind: str, key: str) -> Iterator[bool]:
        """True, and the key is held, where nobody makes or reads it; False where somebody does. Never waits."""
        lock = self._lock(kind, key)
        with trouble():
            held = _try(lock)
        if not held:
            yield False
            return
        try:
            yield not self._is_read(kind, key)
        finally:
            with suppress(OSError):
                lock.release()

    def reading(self, kind: str, key: str) -> Callable[[], None]:
        """Begin to read; call the answer once to end. Only while the key is held."""
        lock = FileLock(self.readers / f"{kind}.{key}.{uuid.uuid4().hex}", thread_local=False)
        with trouble():
            _acquire(lock, timeout=0)
        return lambda: _drop(lock)

    def sweep(self) -> None:
        """Remove the lock files of readers that died."""
        with suppress(OSError):
            for path in self.readers.iterdir():
                _is_dead(path)

    def _lock(self, kind: str, key: str) -> FileLock:
        # Never thread-local: an entry may be closed by another thread than the one that opened it.
        return FileLock(self.folder / f"{kind}.{key}.lock", thread_local=False)

    def _is_read(self, kind: str, key: str) -> bool:
        with trouble():
            return any(not _is_dead(path) for path in self.readers.glob(f"{kind}.{key}.*"))


def _acquire(lock: FileLock, timeout: float) -> None:
    """OSError(ENOSYS) where the file system has no locks: filelock would go on with files that outlive a killed process."""
    lock.acquire(timeout=timeout)
    if isinstance(lock, SoftFileLock):
        lock.release(force=True)
        raise OSError(errno.ENOSYS, "this file system has no file locks")


def _try(lock: FileLock) -> bool:
    try:
        _acquire(lock, timeout=0)
    except Timeout:
        return False
    return True


def _drop(lock: FileLock) -> None:
    """End a reader's lock. Its file goes first: once it is free, somebody else may be about to test it."""
    with suppress(OSError):
        os.unlink(lock.lock_file)  # noqa: PTH108 (lock_file may be str)
    with suppress(OSError):
        lock.release()


def _is_dead(path: Path) -> bool:
    """Is this reader's process gone? Then its file is removed."""
    lock = FileLock(path, thread_local=False)
    dead = _try(lock)
    if dead:
        _drop(lock)
    return dead
