"""What is written beside an artifact's files, by which damage is found."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar

from msgspec import Meta

from erq_export.contract.errors import DataError
from erq_export.contract.records import FileRecord, Record, Sha256, decode, encode
from erq_export.flow.store.key import KEY, KIND

_MOST_BYTES = 16 << 20  # of a record: a hundred thousand files; a longer one is not ours


class Damaged(Exception):
    """An entry is not what its record says, or its record cannot be read; the text says why."""


class KeptFile(Record, frozen=True, kw_only=True):
    """One file of an entry."""

    size: Annotated[int, Meta(ge=0, le=2**53)]  # bytes
    sha256: Sha256


class EntryRecord(FileRecord, frozen=True, kw_only=True):
    """One entry: what it is, what it was made of in words, when (UTC, ISO 8601), and its files by relative name."""

    WHAT: ClassVar[str] = "record of a store's entry"

    kind: str
    key: str
    description: str
    made: str
    files: dict[str, KeptFile]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def content(self) -> str:
        """sha256 of all names and contents: what an artifact made from this one names among its inputs."""
        lines = "".join(f"{name}\0{file.sha256}\n" for name, file in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def describe(kind: str, key: str, description: str, folder: Path) -> EntryRecord:
    """The record of the files below `folder`, each flushed to the disk. ValueError for links and special files."""
    files = {}
    for name, path, is_file in _walk(folder):
        if not is_file or not _is_plain(name):
            raise ValueError(f"an artifact has plain files with portable names only, {name!r} is none")
        with path.open("rb") as f:
            os.fsync(f.fileno())
            digest = hashlib.file_digest(f, "sha256").hexdigest()
            files[name] = KeptFile(size=f.tell(), sha256=digest)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return EntryRecord(kind=kind, key=key, description=description, made=made, files=dict(sorted(files.items())))


def write_record(record: EntryRecord, path: Path) -> None:
    """Write the record, and flush it to the disk."""
    with path.open("wb") as f:
        f.write(encode(record))
        f.flush()
        os.fsync(f.fileno())


def read_record(path: Path, kind: str, key: str) -> EntryRecord:
    """The record of the entry `kind`, `key`. Damaged where it is not exactly what `write_record` writes."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_size > _MOST_BYTES:
            raise Damaged("its record is no plain file of sensible size")
        record = decode(EntryRecord, path.read_bytes(), source="its record")
    except OSError as e:
        raise Damaged(f"its record cannot be read: {e}") from e
    except DataError as e:
        raise Damaged(e.problem) from e
    if (record.kind, record.key) != (kind, key):
        raise Damaged(f"its record is of {record.kind} {record.key[:12]}")
    try:
        moment = datetime.fromisoformat(record.made)
    except ValueError as e:
        raise Damaged(f"made: {record.made!r} is no time") from e
    if moment.tzinfo is None:
        raise Damaged(f"made: {record.made!r} names no time zone")
    for name in record.files:
        if not _is_plain(name):
            raise Damaged(f"{name!r} is no plain relative file name")
    return record


def verify(record: EntryRecord, folder: Path) -> None:
    """Damaged unless the files below `folder` are those of the record, to the bit, and no other; links count as damage."""
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise Damaged("its files lie in no plain folder")
        found = {name: (path, is_file) for name, path, is_file in _walk(folder)}
        if found.keys() != record.files.keys():
            raise Damaged(f"missing or extra: {', '.join(sorted(found.keys() ^ record.files.keys()))}")
        for name, (path, is_file) in found.items():
            if not is_file or path.lstat().st_size != record.files[name].size:
                raise Damaged(f"{name} is no plain file of {record.files[name].size} bytes")
        for name, (path, _) in found.items():
            if sha256_of(path) != record.files[name].sha256:
                raise Damaged(f"{name} has other content than was written")
    except OSError as e:
        raise Damaged(f"cannot be read: {e}") from e


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def size_below(folder: Path) -> int:
    """Bytes of all files below a folder; what goes away while we look counts as nothing."""
    total = 0
    with suppress(OSError):
        for _, path, _ in _walk(folder):
            with suppress(OSError):
                total += path.lstat().st_size
    return total


def is_name(kind: str, key: str) -> bool:
    """Could the store have used these names? What lies in its folders under other names is not ours to touch."""
    return KIND.fullmatch(kind) is not None and KEY.fullmatch(key) is not None


def _walk(folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """(name below `folder`, path, is it a plain file) of everything that is not a plain folder."""
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as items:
            for item in items:
                path = Path(item.path)
                if item.is_dir(follow_symlinks=False):
                    pending.append(path)
                else:
                    yield path.relative_to(folder).as_posix(), path, item.is_file(follow_symlinks=False)


def _is_plain(name: str) -> bool:
    """Relative, below the entry, the same on every system: no `..`, no root, no drive, no control characters."""
    if not name or name != PurePosixPath(name).as_posix() or not name.isprintable() or set(name) & set('\\:*?"<>|'):
        return False
    return not name.startswith("/") and not {"..", "."} & set(name.split("/"))
