"""The output folder: what lies where in it, and how a stage's files appear in it at once or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erq_export.contract.errors import OutputError


@dataclass(frozen=True)
class OutputFolder:
    """OUT/run.json what was asked; OUT/bundle; OUT/<target>/model.onnx, manifest.json and engine/; OUT/report.json, .md."""

    path: Path

    @property
    def run(self) -> Path:
        return self.path / "run.json"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    def target(self, name: str) -> Path:
        return self.path / name

    def graph(self, name: str) -> Path:
        return self.target(name) / "model.onnx"

    def graph_bytes(self, name: str) -> int:
        """The graph's size as written, tensors beside the file included."""
        return sum(path.stat().st_size for path in self.target(name).glob("model.onnx*"))

    def engine(self, name: str) -> Path:
        return self.target(name) / "engine"

    def has_engine(self, name: str) -> bool:
        return (self.engine(name) / "engine.json").exists()

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def occupied(self) -> bool:
        """Does the folder hold anything?"""
        return self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))

    def check(self, *, overwrite: bool) -> None:
        """OutputError where the folder cannot be written, or holds something that must not be lost."""
        if self.occupied():
            if self.path.is_dir() and not self.run.exists():
                raise OutputError(
                    f"{self.path} holds files that are no run of erq-export", fix="--out with a new or empty folder"
                )
            if not self.path.is_dir():
                raise OutputError(f"{self.path} is a file", fix="--out with a folder")
            if not overwrite:
                raise OutputError(
                    f"{self.path} holds another run",
                    fix="--out with a new folder; --overwrite replaces it once the new bundle is complete",
                )
        base = self.path.absolute().parent
        while not base.exists():
            base = base.parent
        try:
            Path(tempfile.mkdtemp(dir=base, prefix=".erq-export-")).rmdir()
        except OSError as e:
            raise OutputError(
                f"cannot write {self.path}: {e.strerror} ({base})", fix="--out with a folder that can be written"
            ) from e


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A folder beside `final` to write into; it takes `final`'s place when the block ends well, and is removed otherwise.

    What was at `final` before is kept until the new one is complete.
    """
    parent = final.absolute().parent
    made = _make_parents(parent)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{final.name}.partial-"))
    old = folder.with_name(f"{folder.name}.old")
    try:
        yield folder
        folder.chmod(0o755)
        if final.exists():
            final.rename(old)
        folder.rename(final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if old.exists() and not final.exists():
            old.rename(final)
        for path in reversed(made):
            if not any(path.iterdir()):
                path.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _make_parents(path: Path) -> list[Path]:
    """Create what is missing of a folder's path; returns what was created, outermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
    return missing[::-1]


def write_text(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never a half."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """JSON, indented, keys in the order given."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
