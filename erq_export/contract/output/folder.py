"""The output folder: what lies where in it, and the right to write it."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erq_export import __version__
from erq_export.contract.errors import DataError, OutputError
from erq_export.contract.run_manifest import OwnedFile, RunManifest

from .lock import alone, is_held
from .owned import changed, contents, read_manifest
from .place import check_changeable, check_place, make_folders, real, remove_empty
from .trouble import told
from .writing import Writing, changed_since, in_the_way, not_ours, settle, sweep

CALIBRATED = ("bundle/bundle.json", "bundle/tensors.safetensors", "run.json")
BENCHES = ("bench.json", "bench.svg")
REPORTS = ("report.json", "report.md", "report.html", "report.svg")
OF_A_TARGET = (
    *("model.onnx", "model.onnx.data", "manifest.json"),
    *("engine/model.engine", "engine/engine.json", "engine/plan.txt", "engine/build.log", "engine/timing.cache"),
)
BISECT = "bisect"  # where a graph first differs, by target
RECORD = "bisect.json"
REPRODUCTION = ("piece.onnx", "tensors.npz", "reproduce.py", "README.md")  # beside it, where something differs
TWIN = "twin"  # the float model beside the quantized one, by target
FINISHED = "OUT is the folder of a finished run; erq-export MODEL --out DIR makes one"


@dataclass(frozen=True)
class OutputFolder:
    """OUT/manifest.json what the run was; OUT/run.json its job; OUT/bundle; OUT/<target>/model.onnx, manifest.json and
    engine/; OUT/twin/<target> the same of the float model; OUT/report.json, .md, .html, .svg; OUT/bisect/<target>."""

    path: Path

    @classmethod
    def named(cls, text: str) -> "OutputFolder":
        """The folder that a user typed. OutputError for an empty name, which would else mean the current folder."""
        if not text.strip():
            raise OutputError("--out is empty", fix="--out with the name of a folder; --out . is the current one")
        return cls(Path(text))

    @property
    def run(self) -> Path:
        return self.path / "run.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

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

    @property
    def twin(self) -> "OutputFolder":
        """OUT/twin, where the float model's graphs and engines lie as the quantized ones do in OUT."""
        return OutputFolder(self.path / TWIN)

    def has_engine(self, name: str) -> bool:
        """Is there a record of an engine, a link that leads nowhere included: reading it says what is wrong."""
        return os.path.lexists(self.engine(name) / "engine.json")

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def read_run_manifest(self) -> RunManifest:
        """What the run was, and which files are its own. DataError where the folder holds no run."""
        return read_manifest(self.path)

    def planned(self, targets: Iterable[str]) -> tuple[str, ...]:
        """The files that a run for these targets may write, relative to the folder."""
        return (*CALIBRATED, *self.planned_for(targets), *REPORTS, *BENCHES)

    def planned_for(self, targets: Iterable[str], *, twin: bool = False) -> tuple[str, ...]:
        """Those of graphs and engines alone; twin: the float model's too."""
        folders = [prefix + target for target in targets for prefix in ("", f"{TWIN}/")[: 1 + twin]]
        return tuple(f"{folder}/{name}" for folder in folders for name in OF_A_TARGET)

    def planned_bisections(self, targets: Iterable[str]) -> tuple[str, ...]:
        """The files that `validate --bisect` may write."""
        return tuple(f"{BISECT}/{target}/{name}" for target in targets for name in (RECORD, *REPRODUCTION))

    def bisection(self, target: str) -> Path:
        return self.path / BISECT / target

    def foreign(self, manifest: RunManifest, targets: Iterable[str]) -> list[str]:
        """Graphs and engines that their run lists and that are not what the run wrote."""
        planned = set(self.planned_for(targets))
        with told(self.path):
            return changed(real(self.path), [file for file in manifest.files if file.path in planned])

    def check_as_written(self, manifest: RunManifest, targets: Iterable[str]) -> None:
        """DataError where a graph or an engine that its run lists is not what the run wrote; readers miss what is not there."""
        with told(self.path):
            if found := self.foreign(manifest, targets):
                path = self.path / found[0]
                raise DataError(
                    f"{path} is not the file that the run wrote: it was damaged or changed",
                    fix=f"move it away, then erq-export build {self.path} writes it again",
                )

    def check(
        self,
        *,
        overwrite: bool = False,
        planned: Sequence[str] = (),
        room: int = 0,
        job: Mapping[str, Any] | None = None,
    ) -> None:
        """OutputError where the folder cannot be written, or holds something that would be lost. Changes nothing.

        planned: files that the run will write (`planned`);  room: bytes that it will need;  job: what will be run: the
        same job that did not end goes on without --overwrite.
        """
        root = check_place(self.path, room=room)
        if root.is_dir():
            with told(self.path):
                if is_held(root):
                    with alone(root, self.path):  # raises its own refusal
                        pass
                self._check_occupant(root, overwrite=overwrite, planned=planned, job=job)

    @contextmanager
    def begin(
        self,
        *,
        overwrite: bool = False,
        planned: Sequence[str] = (),
        room: int = 0,
        command: Sequence[str] = (),
        job: Mapping[str, Any] | None = None,
    ) -> Iterator[Writing]:
        """A new run, checked as `check` does. An old run stays whole until the first files of this one are complete.

        The manifest says `complete` when the block ends well, or as soon as that is recorded. Where nothing was written,
        the folder and those above it that were made for it are removed.
        """
        root = check_place(self.path, room=room)
        with told(self.path):
            made = make_folders(root)
        try:
            with self._held(root):
                self._check_occupant(root, overwrite=overwrite, planned=planned, job=job)
                old = self._settled(root)
                manifest = RunManifest(erq_export=__version__, command=tuple(command), job=dict(job or {}))
                writing = Writing(root, self.path, manifest, old=() if old is None else old.files, begun=False)
                yield writing
                if writing.begun and not writing.manifest.complete:
                    writing.record(complete=True)
        finally:
            remove_empty(made)

    @contextmanager
    def resume(self, *, planned: Sequence[str] = (), room: int = 0) -> Iterator[Writing]:
        """Write into a finished run: single targets or reports in place of its own.

        planned: files that will be written or replaced.  OutputError where there is no run, or it cannot be written.
        """
        root = real(self.path)
        self._run_in(root)
        check_place(self.path, room=room)
        with self._held(root):
            claimed = self._run_in(root).claimed()
            self._check_mine(root, [f for f in claimed if f.path in planned], claimed, planned)
            yield Writing(root, self.path, self._settled(root) or self._run_in(root), old=(), begun=True)

    @contextmanager
    def _held(self, root: Path) -> Iterator[None]:
        """Alone in the folder, and nothing half-written left in it afterwards."""
        with ExitStack() as stack:
            with told(self.path):
                stack.enter_context(alone(root, self.path))
            try:
                yield
            finally:
                with suppress(OSError):
                    sweep(root)

    def _settled(self, root: Path) -> RunManifest | None:
        """The run in the folder, none where it is free, after what a killed run left was ended or swept."""
        with told(self.path):
            found = settle(root, self._run_in(root))[0] if contents(root) else None
            sweep(root)
        return found

    def _run_in(self, root: Path) -> RunManifest:
        try:
            return read_manifest(root)
        except DataError as e:
            raise OutputError(f"{self.path} holds no run: {e.problem}", fix=FINISHED) from e

    def _check_occupant(
        self, root: Path, *, overwrite: bool, planned: Sequence[str], job: Mapping[str, Any] | None
    ) -> None:
        """OutputError where the folder is neither free nor holds a run that may go and would take nothing with it."""
        if not contents(root):
            return
        try:
            manifest = read_manifest(root)
        except DataError as e:
            raise OutputError(
                f"{self.path} holds files that are no run of erq-export ({e.problem})",
                fix="--out with a new or empty folder",
            ) from e
        goes_on = not manifest.complete and bool(job) and manifest.job == dict(job or {})
        if not (overwrite or goes_on):
            raise OutputError(
                f"{self.path} holds another run{'' if manifest.complete else ', which did not end'}",
                fix="--out with a new folder; --overwrite replaces it once the new bundle is complete",
            )
        claimed = manifest.claimed()
        self._check_mine(root, claimed, claimed, planned)

    def _check_mine(
        self, root: Path, going: Sequence[OwnedFile], claimed: Sequence[OwnedFile], planned: Sequence[str]
    ) -> None:
        """OutputError where a file that will go was changed, where one of the user's is in the way, or one is protected."""
        with told(self.path):
            if found := changed(root, going):
                raise changed_since(self.path, found)
            owned = {file.path for file in claimed}
            if found := [name for name in planned if in_the_way(root, name, owned)]:
                raise not_ours(self.path, found)
            check_changeable(self.path, root, [file.path for file in going], planned)
