"""Writing into an output folder: what a stage makes appears at once under its name, and an old run goes only then.

Everything is made under a hidden name in the folder itself, so that the folder may be a mount point or the current one.
To appear, three steps, of which the first decides:
    1  the manifest says which files arrive, which leave, and where the arriving ones wait (`Placement`);
    2  the leaving ones are removed, the arriving ones renamed to their places;
    3  the manifest lists the arrived ones as the run's own.
A kill before 1 leaves all as it was; after 1 whoever opens the folder next ends the rest (`settle`).
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from erq_export.contract.errors import DataError, ErqError, OutputError
from erq_export.contract.records import from_plain
from erq_export.contract.run_manifest import OwnedFile, Placement, RunManifest

from .owned import (
    changed,
    exists,
    is_as_written,
    listed,
    obstacle,
    partial,
    partials,
    read_manifest,
    remove,
    save_manifest,
)
from .trouble import told, told_of_a_stage

T = TypeVar("T")


class Writing:
    """A run's hold on its folder, from `OutputFolder.begin` or `.resume`; the methods may raise OutputError.

    After an error or an interrupt nothing is half there: what was placed before stays, and an old run where nothing was.
    """

    def __init__(
        self, root: Path, shown: Path, manifest: RunManifest, *, old: tuple[OwnedFile, ...], begun: bool
    ) -> None:
        self._root = root
        self._shown = shown  # the folder as the user gave it
        self._old = old  # files of the run that this one replaces; they leave when the first of this one arrive
        self.begun = begun  # the folder's manifest is this run's
        self.manifest = manifest

    def place(self, name: str, fill: Callable[[Path], T]) -> T:
        """Call `fill` with an empty folder; what it wrote becomes OUT/`name`, in place of what the run had written there.

        name: relative, with / between parts; "" for files of OUT itself, each in place of its own former version only.
        Returns what `fill` returns.
        """
        staging = partial(self._root)
        try:
            with told(self._shown):
                folder = staging / name
                staging.mkdir()
                folder.mkdir(parents=True, exist_ok=True)
            with told_of_a_stage(self._shown, self._root):
                made = fill(folder)
            with told(self._shown):
                self._appear(staging, name)
        except BaseException:
            with suppress(OSError, ErqError):
                self._recover(staging)
            raise
        return made

    def write(self, name: str, data: bytes) -> None:
        """One file, OUT/`name`, in place of its former version."""
        folder, _, file = name.rpartition("/")

        def fill(staging: Path) -> None:
            (staging / folder).mkdir(parents=True, exist_ok=True)
            (staging / folder / file).write_bytes(data)

        self.place("", fill)

    def record(self, **updates: Any) -> None:
        """Set fields of the manifest; DataError for a value that is none of the field's. Not written before the first file."""
        plain: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(self.manifest, **updates))
        self.manifest = from_plain(RunManifest, plain, source="manifest.json")
        if self.begun:
            with told(self._shown):
                save_manifest(self._root, self.manifest)

    def _appear(self, staging: Path, name: str) -> None:
        arriving = listed(staging)
        names = {file.path for file in arriving}
        own = self.manifest.files
        replaced = tuple(f for f in own if f.path in names or (name and f"{f.path}/".startswith(f"{name}/")))
        leaving = replaced + self._old
        if not arriving and not leaving:
            shutil.rmtree(staging)
            return
        if found := changed(self._root, leaving):
            raise changed_since(self._shown, found)
        known = {file.path for file in leaving}
        if found := [p for p in sorted(names) if p not in known and in_the_way(self._root, p, known)]:
            raise not_ours(self._shown, found)
        kept = tuple(f for f in own if f not in replaced)
        placing = Placement(staging=staging.name, arriving=arriving, leaving=leaving)
        journal = msgspec.structs.replace(self.manifest, files=kept, placing=placing)
        save_manifest(self._root, journal)
        self.begun, self._old, self.manifest = True, (), journal
        self.manifest, lost = settle(self._root, journal)
        if lost:
            raise not_ours(self._shown, lost)

    def _recover(self, staging: Path) -> None:
        """After an error or interrupt anywhere in `place`: what the folder's manifest says decides."""
        if (self._root / "manifest.json").exists():
            found = read_manifest(self._root)
            if found.placing is not None and found.placing.staging == staging.name:
                self.begun, self._old = True, ()
                self.manifest, _ = settle(self._root, found)
        shutil.rmtree(staging, ignore_errors=True)


def settle(root: Path, manifest: RunManifest) -> tuple[RunManifest, list[str]]:
    """End a placement that was begun, once or again. Returns the manifest as saved, and paths that could not take their place."""
    if (placing := manifest.placing) is None:
        return manifest, []
    # A single file is renamed over its former version. Of several, the former ones go first: never a mixture of both.
    over = {f.path for f in placing.arriving} if len(placing.arriving) == 1 else set()
    arrived = {(f.path, f.sha256) for f in placing.arriving}
    remove(root, [f for f in placing.leaving if f.path not in over and (f.path, f.sha256) not in arrived])
    staging = root / placing.staging
    if staging.is_dir() and not staging.is_symlink():
        _move(staging, root, root, {f.path: f for f in placing.leaving})
    there = [f for f in placing.arriving if is_as_written(root, f)]
    lost = sorted({f.path for f in placing.arriving} - {f.path for f in there})
    files = tuple(sorted((*manifest.files, *there), key=lambda f: f.path))
    settled = msgspec.structs.replace(manifest, files=files, placing=None)
    save_manifest(root, settled)
    shutil.rmtree(staging, ignore_errors=True)
    return settled, lost


def _move(source: Path, target: Path, root: Path, replaceable: dict[str, OwnedFile]) -> None:
    """Rename everything into its place: whole folders where there is none, else what is in them. Never over what is not ours."""
    for entry in sorted(os.scandir(source), key=lambda e: e.name):
        place = target / entry.name
        if entry.is_dir(follow_symlinks=False) and place.is_dir() and not place.is_symlink():
            _move(Path(entry.path), place, root, replaceable)
        elif not os.path.lexists(place):
            Path(entry.path).rename(place)
        elif entry.is_file(follow_symlinks=False):
            former = replaceable.get(place.relative_to(root).as_posix())
            if former is not None and is_as_written(root, former):
                Path(entry.path).replace(place)


def sweep(root: Path) -> None:
    """Remove what was left half-written; what waits to take its place stays for `settle`."""
    waiting = None
    with suppress(DataError):
        placing = read_manifest(root).placing
        waiting = None if placing is None else placing.staging
    for path in list(partials(root)):
        if path.name == waiting:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def in_the_way(root: Path, path: str, owned: set[str]) -> bool:
    """Does something of the user's lie where a file of the run is to be, or where a folder on the way to it is to be?"""
    if (part := obstacle(root, path)) is not None:
        return part not in owned
    return exists(root, path) and path not in owned


def changed_since(shown: Path, paths: list[str]) -> OutputError:
    return OutputError(
        f"{shown}: {_some(paths)} changed since the run wrote it, and would be lost",
        fix="move it away, or --out with another folder",
    )


def not_ours(shown: Path, paths: list[str]) -> OutputError:
    return OutputError(
        f"{shown}: {_some(paths)} is not from a run of erq-export, and would be lost",
        fix="move it away, or --out with another folder",
    )


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
