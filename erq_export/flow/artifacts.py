"""An artifact as stages hand it on: files in a folder, and the hash of their contents, wherever they lie."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from erq_export.contract.bundle import Bundle
from erq_export.contract.engine import ENGINE, EngineRecord
from erq_export.contract.errors import OutputError
from erq_export.contract.files import content_of, file_sha256
from erq_export.contract.manifest import MANIFEST, GraphManifest, Origin
from erq_export.contract.records import read
from erq_export.flow.store.entry import Entry

T = TypeVar("T")


class Artifact:
    """content: sha256 over the names and contents of all files, the same in the store and in a run's folder."""

    def __init__(self, content: str, folder: Path, again: Callable[[], Entry] | None = None) -> None:
        self.content = content
        self._folder = folder
        self._again = again

    @classmethod
    def of(cls, fetch: Callable[[], Entry]) -> "Artifact":
        """What `fetch` finds or makes in the store. It stays there as long as the store is open, unless somebody deletes it."""
        entry = fetch()
        return cls(entry.content, entry.folder, fetch)

    @classmethod
    def at(cls, folder: Path) -> "Artifact":
        """The files that lie in a folder, those of its sub-folders left out. OutputError where there is none."""
        try:
            names = sorted(path.name for path in folder.iterdir() if path.is_file())
        except OSError as e:
            raise OutputError(f"cannot read {folder}: {e.strerror}", fix="name the folder of a finished run") from e
        return cls(content_of({name: file_sha256(folder / name) for name in names}.items()), folder)

    @property
    def folder(self) -> Path:
        """Where the files lie; `read` survives that the store is deleted meanwhile."""
        return self._folder

    def read(self, reader: Callable[[Path], T]) -> T:
        """`reader(folder)`; where the store was deleted meanwhile, fetched and read once more."""
        try:
            return reader(self._folder)
        except Exception:
            if self._again is None or self._is_whole():
                raise
        self._folder = self._again().folder
        return reader(self._folder)

    def _is_whole(self) -> bool:
        try:
            return Artifact.at(self._folder).content == self.content
        except (OSError, OutputError):
            return False


def read_manifest(graph: Artifact) -> GraphManifest:
    """What a graph claims. DataError where its manifest is damaged."""
    return graph.read(lambda folder: read(GraphManifest, folder / MANIFEST))


def read_engine(engine: Artifact) -> EngineRecord:
    """What was compiled, and what it runs differently from the claims. DataError where the record is damaged."""
    return engine.read(lambda folder: read(EngineRecord, folder / ENGINE))


def origin(bundle: Bundle, content: str) -> Origin:
    """What a graph and its manifest say of where they come from."""
    identity, spec = bundle.identity, bundle.spec
    return Origin(
        bundle_sha256=content,
        model=identity.timm_name,
        model_args=identity.model_args,
        weights=identity.weights,
        bits=spec.bits,
        attention=spec.attention,
        method=spec.method,
        preprocess=identity.preprocess,
    )
