"""What happened in a store, one line an event, so that "nothing was made twice" can be proved across processes."""

import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from erq_export.contract.errors import DataError
from erq_export.contract.records import Record, from_plain, plain_of

Happened = Literal["begun", "made", "damaged", "evicted"]
_TURN_OVER_BYTES = 4 << 20


class Event(Record, frozen=True, kw_only=True):
    """begun: a maker was called; made: what it made is kept; damaged: found so and removed; evicted: removed to save space."""

    event: Happened
    kind: str
    key: str
    process: int
    time: str  # UTC, ISO 8601
    why: str = ""


class EventLog:
    """A file that is only appended to, a line in one write: lines of several processes never mix on a local disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Happened, kind: str, key: str, why: str = "") -> None:
        """Best effort: a log that cannot be written never stops the work."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        happened = Event(event=event, kind=kind, key=key, process=os.getpid(), time=now, why=why[:300])
        with suppress(OSError):
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(handle, (json.dumps(plain_of(happened)) + "\n").encode("ascii"))
            finally:
                os.close(handle)

    def events(self) -> list[Event]:
        """All events, oldest first; lines that are no event (a full disk cuts one) are passed over."""
        found = []
        for path in (self._before, self.path):
            try:
                lines = path.read_bytes().splitlines()
            except OSError:
                continue
            for line in lines:
                with suppress(ValueError, RecursionError, DataError):
                    found.append(from_plain(Event, json.loads(line), source=str(path)))
        return found

    def turn_over(self) -> None:
        """Begin a new file where this one is over 4 MiB (20,000 events); the one before is kept, older ones go."""
        with suppress(OSError):
            if self.path.stat().st_size > _TURN_OVER_BYTES:
                self.path.replace(self._before)

    @property
    def _before(self) -> Path:
        return self.path.with_name("log.1.jsonl")


@dataclass(frozen=True)
class Counts:
    """What this store object saw happen to one kind of artifact."""

    hits: int = 0
    made: int = 0
    damaged: int = 0
    evicted: int = 0


class Tally:
    """Counts of one store object, by kind. For several threads."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}
        self._guard = threading.Lock()

    def add(self, kind: str, what: Literal["hits", "made", "damaged", "evicted"]) -> None:
        """One more."""
        with self._guard:
            before = self._counts.get(kind, Counts())
            self._counts[kind] = replace(before, **{what: getattr(before, what) + 1})

    def counts(self) -> dict[str, Counts]:
        """As they are now."""
        with self._guard:
            return dict(self._counts)
