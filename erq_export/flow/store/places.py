"""Where a store can work right now: in the folder it was given, or, when that fails, in one that is removed at the end."""

import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from erq_export.contract.errors import ErqError, MachineError, OutputError
from erq_export.flow.store.shelf import Shelf
from erq_export.flow.store.trouble import StoreTrouble, trouble

MakeRoom = Callable[[Shelf, int], None]  # (shelf, bytes written when the disk was full): evict
_PREFIX = "erq-export-unkept-"
_ALIVE = "alive"
_YOUNG_S = 600.0  # a spare shelf younger than this may not have locked its `alive` yet


class Places:
    """The shelf that keeps (None once given up), the spare one for what cannot be kept, and the one note about it."""

    def __init__(self, root: Path | None, say: Callable[[str], None]) -> None:
        self.kept = Shelf(root) if root is not None else None
        self.reads_only = False  # the disk is full: what is kept is read, what is made is not kept
        self.say = say
        self._root = root
        self._spare: Shelf | None = None
        self._alive: FileLock | None = None  # says to other processes that the spare shelf is in use
        self._noted = False
        self._guard = threading.Lock()

    def open(self, *, explicit: bool, make_room: MakeRoom) -> None:
        """Prepare the shelf that keeps; where it cannot be used, refuse it if `explicit`, else give it up.

        A full disk is no reason to give up what is kept there already; whoever named the store shall know before the work.
        """
        if self.kept is None:
            return
        try:
            self.kept.prepare()
            self.kept.sweep()
            if explicit:
                try:
                    self.kept.prove_room()
                except StoreTrouble as t:
                    if not t.full:
                        raise
                    make_room(self.kept, 0)
                    self.kept.prove_room()
        except StoreTrouble as t:
            if explicit:
                raise refusal(self.kept, t) from t
            self.give_up(t)

    def all(self) -> list[Shelf]:
        """Every shelf there is now."""
        with self._guard:
            return [shelf for shelf in (self.kept, self._spare) if shelf is not None]

    def spare(self) -> Shelf:
        """A shelf of this object's own, in the folder for temporary files. OutputError where there is none."""
        with self._guard:
            if self._spare is None:
                try:
                    _remove_orphans()
                    with trouble():
                        spare = Shelf(Path(tempfile.mkdtemp(prefix=_PREFIX)))
                        weakref.finalize(self, _remove, spare.root, os.getpid())
                        self._alive = FileLock(spare.root / _ALIVE, thread_local=False)
                        self._alive.acquire(timeout=0)
                    spare.prepare()
                except StoreTrouble as t:
                    raise OutputError(
                        f"no folder for temporary files: {t.words}", fix="TMPDIR=DIR with a folder that can be written"
                    ) from t
                self._spare = spare
            return self._spare

    def mend(self, shelf: Shelf, t: StoreTrouble, attempt: int, make_room: MakeRoom) -> None:
        """After trouble: make room, or the folders again; where that was done before, go on without keeping."""
        try:
            if attempt == 0 and t.full:
                make_room(shelf, t.n_bytes)
            elif attempt == 0 and t.gone:
                shelf.prepare()
            elif attempt == 1 and t.full:
                self._note(f"the store is full, new results are not kept: {t.words} ({shelf.root})")
                self.reads_only = True
            else:
                self.give_up(t)
        except StoreTrouble as another:
            self.give_up(another)

    def give_up(self, t: StoreTrouble) -> None:
        """Keep nothing any more; say so, once."""
        self._note(f"the store cannot be used, nothing is kept for the next run: {t.words} ({self._root})")
        self.kept = None

    def checkpoint_lost(self, error: OSError) -> None:
        """Say, once, that a kill will cost more than it should."""
        self._note(f"checkpoints are not kept, a run that is stopped starts this step again: {error.strerror or error}")

    def _note(self, text: str) -> None:
        with self._guard:
            first, self._noted = not self._noted, True
        if first:
            self.say(text)

    def wait_for(self, what: str) -> None:
        """Say why nothing happens."""
        self.say(f"waiting for another run, which is making the same {what}")

    def close(self) -> None:
        """Remove the spare shelf and all that is on it."""
        with self._guard:
            spare, self._spare = self._spare, None
        if spare is not None:
            shutil.rmtree(spare.root, ignore_errors=True)
            if self._alive is not None:
                self._alive.release()


def refusal(shelf: Shelf, t: StoreTrouble) -> ErqError:
    """What the user, who named this store, can do about it."""
    if t.no_locks:
        return MachineError(
            f"the store {shelf.root} is on a file system without locks",
            fix="--store DIR on a local disk, or --no-store",
        )
    return OutputError(
        f"the store {shelf.root} cannot be written: {t.words}",
        fix="--store DIR with a folder that can be written and a disk that has room, or --no-store",
    )


def _remove(root: Path, process: int) -> None:
    if process == os.getpid():  # a forked child must not take its parent's folder away
        shutil.rmtree(root, ignore_errors=True)


def _remove_orphans() -> None:
    """Remove spare shelves of this user whose processes were killed."""
    with suppress(OSError):
        for root in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError, Timeout):
                status = root.lstat()
                foreign = os.name == "posix" and status.st_uid != os.getuid()
                if foreign or time.time() - status.st_mtime < _YOUNG_S:
                    continue
                with FileLock(root / _ALIVE, timeout=0, thread_local=False):
                    shutil.rmtree(root, ignore_errors=True)
