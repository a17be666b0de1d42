"""What a store hands out: a finished artifact to read, and a place to make one."""

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from erq_export.flow.store.checkpoints import Checkpoints
from erq_export.flow.store.record import EntryRecord, KeptFile


@dataclass(frozen=True)
class Work:
    """Where a maker works: `folder`, fresh and empty, becomes the artifact; `checkpoints` outlive a kill."""

    folder: Path
    checkpoints: Checkpoints


class Entry:
    """An artifact that is being read. Until `close` (or the store's) it is neither evicted nor cleared, by no process.

    Every file was held against its hash when the entry was opened. The files belong to the store: never write into
    `folder`; `copy_to` gives copies that are the caller's own. Only deleting the store by other means (rm) takes files away
    under a reader: where that must be survived, read through `Store.read`.
    """

    def __init__(self, record: EntryRecord, folder: Path, *, made_now: bool, closed: Callable[["Entry"], None]) -> None:
        self.kind = record.kind
        self.key = record.key
        self.description = record.description
        self.files: dict[str, KeptFile] = record.files  # by name relative to `folder`
        self.size = record.size  # bytes
        self.content = record.content  # sha256 of names and contents: an input of what is made from this artifact
        self.folder = folder
        self.made_now = made_now  # by this call, not found
        self._closed = closed
        self._lock = threading.Lock()
        self._open = True

    def copy_to(self, folder: Path) -> None:
        """Copy all files into `folder`, made where missing. Copies, no links: who edits them doesn't damage the store."""
        for name in self.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, target)

    def close(self) -> None:
        """End reading; a second call does nothing. What is larger than the store's limit may be gone afterwards."""
        with self._lock:
            was_open, self._open = self._open, False
        if was_open:
            self._closed(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
