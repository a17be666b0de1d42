"""One folder laid out as a store: what lies where in it, and how entries come and go whole."""

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from erq_export.flow.store.lock import KeyLocks
from erq_export.flow.store.log import EventLog
from erq_export.flow.store.record import (
    Damaged,
    EntryRecord,
    describe,
    is_name,
    read_record,
    size_below,
    verify,
    write_record,
)
from erq_export.flow.store.trouble import identity_of, trouble

_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Kept by erq-export to save work; may be deleted at any time.\n"
_PROBE_BYTES = 1 << 16
Removal = Literal["removed", "gone", "in use"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One thing that is kept: a finished artifact, or the checkpoints of one that is not finished."""

    kind: str
    key: str
    finished: bool
    description: str
    size: int  # bytes
    last_used: datetime  # UTC


class Shelf:
    """root/v1/entries/<kind>/<key>/{entry.json, files/}; checkpoints/<kind>/<key>; partial; locks; log.jsonl.

    An entry appears by one rename of a folder that is complete and flushed, and goes by one rename, too. When it was used
    last is the time of its `entry.json`. Whoever calls `found`, `begin`, `publish` or `discard` holds the key.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "v1"
        self.locks = KeyLocks(self.home / "locks")
        self.log = EventLog(self.home / "log.jsonl")

    def prepare(self) -> None:
        """Make the folders; prove that they can be written and locked. StoreTrouble where not."""
        with trouble():
            for name in ("entries", "partial", "checkpoints"):
                (self.home / name).mkdir(parents=True, exist_ok=True)
        self.locks.prepare()
        with suppress(OSError), (self.home / "CACHEDIR.TAG").open("x", encoding="ascii") as f:
            f.write(_TAG)

    def prove_room(self) -> None:
        """StoreTrouble where the disk doesn't even take 64 KiB."""
        with trouble(), tempfile.TemporaryFile(dir=self.home / "partial") as f:
            f.write(bytes(_PROBE_BYTES))
            f.flush()
            os.fsync(f.fileno())

    def files(self, kind: str, key: str) -> Path:
        """Where an entry's files lie."""
        return self._entry(kind, key) / "files"

    def checkpoints(self, kind: str, key: str) -> Path:
        """Where an unfinished artifact's checkpoints lie."""
        return self.home / "checkpoints" / kind / key

    def found(self, kind: str, key: str) -> EntryRecord | None:
        """The record of an entry, every file checked, and the entry marked as used now. None where there is none."""
        entry = self._entry(kind, key)
        if not os.path.lexists(entry):
            return None
        record = read_record(entry / "entry.json", kind, key)
        verify(record, entry / "files")
        with suppress(OSError):
            os.utime(entry / "entry.json")
        return record

    def begin(self, kind: str, key: str) -> Path:
        """A fresh folder to write the files of an entry into."""
        with trouble():
            files = Path(tempfile.mkdtemp(prefix=f"{kind}.{key}.", dir=self.home / "partial")) / "files"
            files.mkdir()
            return files

    def publish(self, kind: str, key: str, description: str, files: Path, identity: tuple[int, int]) -> EntryRecord:
        """Make what was written into `files` the entry, of which there must be none yet.

        StoreTrouble where the disk fails or the folder was taken away meanwhile.
        """
        with trouble():
            if identity_of(files) != identity:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(files))
            record = describe(kind, key, description, files)
            write_record(record, files.parent / "entry.json")
            files.parent.chmod(0o755)  # mkdtemp's is private; what is in it has the user's own modes
            for folder in (files, files.parent):
                _flush(folder)
            final = self._entry(kind, key)
            final.parent.mkdir(parents=True, exist_ok=True)
            files.parent.rename(final)
            _flush(final.parent)
        return record

    def abandon(self, files: Path) -> None:
        """Remove what `begin` made, where `publish` didn't move it away."""
        shutil.rmtree(files.parent, ignore_errors=True)

    def discard(self, kind: str, key: str) -> None:
        """Remove an entry, whatever its state."""
        entry = self._entry(kind, key)
        with trouble():
            if os.path.lexists(entry):
                trash = Path(tempfile.mkdtemp(prefix=f"{kind}.{key}.", dir=self.home / "partial"))
                entry.rename(trash / "entry")
                shutil.rmtree(trash, ignore_errors=True)

    def remove_if_idle(self, item: Kept) -> Removal:
        """Remove an entry or checkpoints as they were listed, unless somebody makes, reads, or has used them since."""
        with self.locks.idle(item.kind, item.key) as idle:
            if not idle:
                return "in use"
            path = self._entry(item.kind, item.key) if item.finished else self.checkpoints(item.kind, item.key)
            try:
                last_used = _last_used(path)
            except FileNotFoundError:
                return "gone"
            if last_used != item.last_used:
                return "in use"
            if item.finished:
                self.discard(item.kind, item.key)
            else:
                shutil.rmtree(path, ignore_errors=True)
            return "removed"

    def items(self) -> list[Kept]:
        """Everything kept, least recently used first. Only records are read, no content."""
        found = []
        for finished, name in ((True, "entries"), (False, "checkpoints")):
            for path in (self.home / name).glob("*/*"):
                kind, key = path.parent.name, path.name
                if not is_name(kind, key):
                    continue
                with suppress(OSError):  # it may go while we look
                    last_used = _last_used(path)
                    size = size_below(path)
                    what = self._in_words(kind, key) if finished else "checkpoints of unfinished work"
                    found.append(
                        Kept(kind=kind, key=key, finished=finished, description=what, size=size, last_used=last_used)
                    )
        return sorted(found, key=lambda item: (item.last_used, item.kind, item.key))

    def sweep(self) -> None:
        """Remove what killed processes left: half-written folders, readers' locks, checkpoints of finished entries."""
        with trouble():
            for path in (self.home / "partial").iterdir():
                kind, key = [*path.name.split("."), "", ""][:2]
                if is_name(kind, key):
                    with self.locks.idle(kind, key) as idle:
                        # Readers don't matter to it, makers do; a reader only puts it off.
                        if idle:
                            shutil.rmtree(path, ignore_errors=True)
            for path in (self.home / "checkpoints").glob("*/*"):
                kind, key = path.parent.name, path.name
                if is_name(kind, key) and os.path.lexists(self._entry(kind, key)):
                    with self.locks.idle(kind, key) as idle:
                        if idle and os.path.lexists(self._entry(kind, key)):
                            shutil.rmtree(path, ignore_errors=True)
        self.locks.sweep()
        self.log.turn_over()

    def _entry(self, kind: str, key: str) -> Path:
        return self.home / "entries" / kind / key

    def _in_words(self, kind: str, key: str) -> str:
        try:
            return read_record(self._entry(kind, key) / "entry.json", kind, key).description
        except Damaged as e:
            return f"damaged: {e}"


def _last_used(path: Path) -> datetime:
    """When an entry was read or made last, or a checkpoint saved. FileNotFoundError where there is nothing."""
    clock = path / "entry.json" if os.path.lexists(path / "entry.json") else path
    return datetime.fromtimestamp(clock.lstat().st_mtime, UTC)


def _flush(folder: Path) -> None:
    """Make a folder's list of names last through a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
