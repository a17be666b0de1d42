"""The artifact store: what a stage made is kept by content, made once, checked when read, and never half there."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from erq_export.contract.errors import ErqError, OutputError
from erq_export.flow.store.entry import Entry, Work
from erq_export.flow.store.evict import keep_within, make_room
from erq_export.flow.store.log import Counts, Event, Happened, Tally
from erq_export.flow.store.making import Tell, find, make_on, working
from erq_export.flow.store.places import Places, refusal
from erq_export.flow.store.record import is_name, size_below
from erq_export.flow.store.settings import default_limit, default_root, in_words
from erq_export.flow.store.shelf import Kept, Shelf
from erq_export.flow.store.trouble import StoreTrouble

T = TypeVar("T")
Make = Callable[[Work], None]
_TRIES = 3  # as the store is, mended, and with the shelf only read


class _Absent(Exception):
    """Nobody has made it."""


def _absent(_work: Work) -> None:
    raise _Absent


def silent(_: str) -> None:
    """Say nothing."""


class Store:
    """Artifacts by (kind, key), in `root`, at most `limit_bytes` of them. For any number of threads and processes at once.

    Guaranteed, however processes end:
    - What `fetch` returns is complete, and equal to the hashes written with it; what is damaged is made again.
    - One process at a time makes an artifact; who asks meanwhile waits, and reads. A dead process blocks nobody.
    - Nobody's files vanish while an `Entry` is open; the least recently used that nobody uses go first.
    - A store that fails never fails the run: it goes on without keeping, and `say` hears of it once. Only where the user
      named the store (`explicit`) is it refused, and then here, before any work: OutputError for a folder that cannot
      be written, MachineError for a disk without locks.

    The hashes guard against damage, not against somebody who may write into the store.
    """

    def __init__(
        self, root: Path | None, limit_bytes: int, *, say: Callable[[str], None] = silent, explicit: bool = False
    ) -> None:
        self.root = root  # None: nothing outlives this object
        self.limit_bytes = limit_bytes
        self._places = Places(root, say)
        self._tally = Tally()
        self._open: set[Entry] = set()
        self._guard = threading.Lock()  # of the set
        self._over_limit = False  # when last looked, by what was in use
        self._places.open(explicit=explicit, make_room=partial(self._make_room, artifact=None))

    @classmethod
    def at(
        cls,
        path: Path | None = None,
        *,
        explicit: bool = False,
        limit_bytes: int | None = None,
        say: Callable[[str], None] = silent,
    ) -> "Store":
        """The store at `path`, by default the user's (`default_root`), with the user's limit (`default_limit`).

        SpecError for a limit that is no size. A user without a cache folder gets a store that keeps nothing.
        """
        limit = default_limit() if limit_bytes is None else limit_bytes
        try:
            return cls(default_root() if path is None else path.absolute(), limit, say=say, explicit=explicit)
        except ErqError as e:
            if explicit or path is not None:
                raise
            say(f"nothing is kept for the next run: {e.problem} ({e.fix})")
            return cls.none()

    @classmethod
    def none(cls) -> "Store":
        """`--no-store`: within this object nothing is made twice, at `close` everything is removed."""
        return cls(None, 0)

    def fetch(self, kind: str, key: str, make: Make, *, description: str) -> Entry:
        """The artifact `key`, found and checked, or else made by `make(work)`, which writes files into `work.folder`.

        `description` says in words what it is made of. `make` must give the same files whenever it is called for one key,
        and may be called again, with its checkpoints: after a kill, or where the disk filled up or the store was deleted
        under it. What it raises for a reason of its own is raised unchanged; then only its checkpoints stay.
        """
        _check_names(kind, key)
        for attempt in range(_TRIES):
            shelf = self._places.kept
            if shelf is None:
                break
            try:
                entry = self._fetch_from(shelf, kind, key, make, description)
            except StoreTrouble as t:
                self._places.mend(shelf, t, attempt, partial(self._make_room, artifact=(kind, key)))
                continue
            if entry.made_now:
                self._keep_within_limit()
            return entry
        return self._fetch_unkept(kind, key, make, description, older=None)

    def find(self, kind: str, key: str) -> Entry | None:
        """The artifact `key` if it is kept, checked as `fetch` checks it; None where it is not."""
        try:
            return self.fetch(kind, key, _absent, description=f"a {kind}")
        except _Absent:
            return None

    def read(self, kind: str, key: str, make: Make, reader: Callable[[Path], T], *, description: str) -> T:
        """`reader(folder)` of the artifact, as `fetch` gives it; fetched once more where the store was deleted meanwhile."""
        with self.fetch(kind, key, make, description=description) as entry:
            try:
                return reader(entry.folder)
            except Exception:
                if all((entry.folder / name).exists() for name in entry.files):
                    raise
        with self.fetch(kind, key, make, description=description) as entry:
            return reader(entry.folder)

    @contextmanager
    def workspace(self, kind: str, key: str) -> Iterator[Work]:
        """The place in which `fetch` would make this artifact, for work on it that doesn't finish it. The key is held.

        `work.checkpoints` stay, for whoever makes the artifact later; `work.folder` is removed at the end.
        """
        _check_names(kind, key)
        with ExitStack() as stack:
            shelf = self._places.kept
            try:
                work = stack.enter_context(self._held(shelf or self._places.spare(), kind, key))
            except StoreTrouble as t:
                self._places.give_up(t)
                work = stack.enter_context(self._held(self._places.spare(), kind, key))
            yield work

    @property
    def counts(self) -> dict[str, Counts]:
        """By kind, what happened through this object; `events` has what happened through any."""
        return self._tally.counts()

    def events(self) -> list[Event]:
        """What all processes did with this store, oldest first: (kind, key) is `made` once, unless evicted or damaged since."""
        return [event for shelf in self._places.all() for event in shelf.log.events()]

    def contents(self) -> list[Kept]:
        """What is kept, least recently used first, checkpoints of unfinished artifacts included."""
        return [item for shelf in self._places.all() for item in shelf.items()]

    def size(self) -> int:
        """Bytes of everything in the store, what is being made included."""
        return sum(size_below(shelf.home) for shelf in self._places.all())

    def clear(self, kind: str | None = None, older_than: timedelta | None = None) -> tuple[list[Kept], list[Kept]]:
        """Remove everything, or what is of one kind, or wasn't used for so long: (removed, left because in use).

        OutputError where the store cannot be written.
        """
        removed: list[Kept] = []
        left: list[Kept] = []
        for shelf in self._places.all():
            try:
                for item in shelf.items():
                    old = older_than is None or datetime.now(UTC) - item.last_used >= older_than
                    if old and kind in (None, item.kind):
                        removal = shelf.remove_if_idle(item)
                        if removal != "gone":
                            (removed if removal == "removed" else left).append(item)
                shelf.sweep()
            except StoreTrouble as t:
                raise refusal(shelf, t) from t
        return removed, left

    def close(self) -> None:
        """Close every entry, bring the store to its limit, remove what was not to be kept. A second call does nothing."""
        with self._guard:
            entries = list(self._open)
        for entry in entries:
            entry.close()
        self._keep_within_limit()
        self._places.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fetch_from(
        self, shelf: Shelf, kind: str, key: str, make: Make, description: str, older: Path | None = None
    ) -> Entry:
        with shelf.locks.making(kind, key, lambda: self._places.wait_for(description)):
            record = find(shelf, kind, key, self._tell(shelf))
            made_now = record is None
            if record is None and make is _absent:
                raise _Absent  # before anything is logged as begun
            if record is None and shelf is self._places.kept and self._places.reads_only:
                return self._fetch_unkept(kind, key, make, description, older=shelf.checkpoints(kind, key))
            if record is None:
                with working(shelf, kind, key, older, self._places.checkpoint_lost) as work:
                    record = make_on(shelf, kind, key, description, make, work, self._tell(shelf))
            else:
                self._tally.add(kind, "hits")
            end = shelf.locks.reading(kind, key)

        def closed(entry: Entry) -> None:
            end()
            with self._guard:
                self._open.discard(entry)
            if shelf is self._places.kept and (self._over_limit or entry.size > self.limit_bytes):
                self._keep_within_limit()

        entry = Entry(record, shelf.files(kind, key), made_now=made_now, closed=closed)
        with self._guard:
            self._open.add(entry)
        return entry

    def _fetch_unkept(self, kind: str, key: str, make: Make, description: str, older: Path | None) -> Entry:
        shelf = self._places.spare()
        try:
            return self._fetch_from(shelf, kind, key, make, description, older)
        except StoreTrouble as t:
            raise OutputError(
                f"no place for {description}, {in_words(t.n_bytes)} written: {t.words} ({shelf.root})",
                fix="make room there, or TMPDIR=DIR with a folder on a disk that has some",
            ) from t

    @contextmanager
    def _held(self, shelf: Shelf, kind: str, key: str) -> Iterator[Work]:
        with (
            shelf.locks.making(kind, key, lambda: self._places.wait_for(kind)),
            working(shelf, kind, key, None, self._places.checkpoint_lost) as work,
        ):
            yield work

    def _keep_within_limit(self) -> None:
        shelf = self._places.kept
        if shelf is not None:
            with suppress(StoreTrouble):  # whatever it is, the next one to write meets it, too
                self._over_limit = not keep_within(shelf, self.limit_bytes, self._evicted(shelf))

    def _make_room(self, shelf: Shelf, n_bytes: int, *, artifact: tuple[str, str] | None) -> None:
        make_room(shelf, 2 * n_bytes, artifact, self._evicted(shelf))

    def _evicted(self, shelf: Shelf) -> Callable[[Kept], None]:
        return lambda item: self._tell(shelf)("evicted", item.kind, item.key, item.description)

    def _tell(self, shelf: Shelf) -> Tell:
        def tell(event: Happened, kind: str, key: str, why: str) -> None:
            shelf.log.append(event, kind, key, why)
            if event != "begun":
                self._tally.add(kind, event)

        return tell


def _check_names(kind: str, key: str) -> None:
    if not is_name(kind, key):
        raise ValueError(f"kind {kind!r}, key {key!r}: a short lower-case word, and what `key()` gives")
