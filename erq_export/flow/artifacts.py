"""An artifact as stages hand it on: files in a folder, and the hash of their contents, wherever they lie."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from erq_export.contract.engine import ENGINE, EngineRecord
from erq_export.contract.errors import OutputError
from erq_export.contract.files import file_sha256
from erq_export.contract.manifest import MANIFEST, GraphManifest
from erq_export.contract.records import read
from erq_export.flow.store.entry import Entry


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """content: sha256 over the names and contents of all files, the same in the store and in a run's folder."""

    folder: Path
    content: str

    @classmethod
    def of(cls, entry: Entry) -> "Artifact":
        """An entry of the store, which stays open as long as the store does."""
        return cls(folder=entry.folder, content=entry.content)

    @classmethod
    def at(cls, folder: Path) -> "Artifact":
        """The files that lie in a folder, those of its sub-folders left out. OutputError where there is none."""
        try:
            names = sorted(path.name for path in folder.iterdir() if path.is_file())
        except OSError as e:
            raise OutputError(f"cannot read {folder}: {e.strerror}", fix="name the folder of a finished run") from e
        return cls(folder=folder, content=content_of({name: file_sha256(folder / name) for name in names}.items()))


def content_of(files: Iterable[tuple[str, str]]) -> str:
    """One sha256 for (name, sha256) of every file; the store's entries have the same."""
    lines = "".join(f"{name}\0{sha256}\n" for name, sha256 in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(graph: Artifact) -> GraphManifest:
    """What a graph claims. DataError where its manifest is damaged."""
    return read(GraphManifest, graph.folder / MANIFEST)


def read_engine(engine: Artifact) -> EngineRecord:
    """What was compiled, and what it runs differently from the claims. DataError where the record is damaged."""
    return read(EngineRecord, engine.folder / ENGINE)
