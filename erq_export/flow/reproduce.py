"""A run made again from its manifest, and for each artifact: identical, or what differs first."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from msgspec import structs
from safetensors import SafetensorError
from safetensors.torch import load_file

from erq_export.contract.engine import ENGINE, EngineRecord
from erq_export.contract.errors import DataError, ErqError
from erq_export.contract.output.folder import TWIN, OutputFolder
from erq_export.contract.records import from_plain, plain_of, read
from erq_export.contract.run_manifest import RunManifest
from erq_export.contract.targets import deployable
from erq_export.exporters.lint.load import load as load_graph
from erq_export.flow.begin import begin, check_cost
from erq_export.flow.detection import run as detection
from erq_export.flow.detection.asked import is_detector
from erq_export.flow.job import Job
from erq_export.flow.run import inputs, machine, make, place, version_of_packages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui

LOG = ".log"  # says when and how fast, and is another one every time
RECORD = f"/{ENGINE}"  # says how fast too: compared by what else it says


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One thing that was made again: identical, or what differs first, in words."""

    what: str
    differs: str | None

    def says(self) -> str:
        """A line."""
        return f"{self.what}: {'identical' if self.differs is None else self.differs}"


def reproduce(
    manifest: Path, ui: Ui, *, out: Path | None = None, changes: dict[str, str] | None = None
) -> list[Verdict]:
    """Run the manifest's job again, without any store, and compare.

    changes: where its data, val or checkpoint lie on this machine.  out: a folder that keeps what is made.
    DataError for a manifest that is none, or that does not say what was asked; else as `run` raises. What a run's own
    folder holds beside the manifest is compared tensor by tensor and node by node, without it file by file.
    """
    was, job = asked(manifest)
    job = moved(job, changes or {})
    with tempfile.TemporaryDirectory(prefix="erq-export-") as spare, Store.none() as store:
        folder = OutputFolder(out or Path(spare) / "again")
        if is_detector(job.model.name):
            now, given = detection.made_again(job, folder, ui, store)
            return list(verdicts(was, manifest.parent, now, folder.path, given))
        targets = deployable(job.deploy.targets)
        work = begin(job, ui, store)
        check_cost(work)
        with folder.begin(planned=folder.planned(targets), job=plain_of(job)) as writing:
            given = inputs(work)
            writing.record(versions=version_of_packages(), machine=machine(), **given)
            with work.stage("calibrate"):
                bundle = work.stages.bundle(work.model, work.calibration_images(job.data.seed), job.quantization)
                place(writing, "bundle", bundle)
            make(work.course, work.stages, job.deploy, writing, bundle, targets)
            return list(verdicts(was, manifest.parent, writing.manifest, folder.path, given))


def asked(manifest: Path) -> tuple[RunManifest, Job]:
    """A run's manifest and the job in it. DataError where it is damaged or does not say what was asked."""
    was = read(RunManifest, manifest)
    if not was.job:
        raise DataError(f"{manifest} does not say what was asked", fix="the manifest.json of a run that named its job")
    return was, from_plain(Job, was.job, source=f"{manifest}, job", fix=RunManifest.REMEDY)


def moved(job: Job, changes: dict[str, str]) -> Job:
    """The job with its images and weights elsewhere."""
    data = {name: value for name, value in changes.items() if name in ("data", "val", "coco", "class_map")}
    model = {name: value for name, value in changes.items() if name == "checkpoint"}
    return structs.replace(job, data=structs.replace(job.data, **data), model=structs.replace(job.model, **model))


def verdicts(
    was: RunManifest, before: Path, now: RunManifest, after: Path, given: dict[str, dict[str, str]]
) -> Iterator[Verdict]:
    """Inputs first, then versions and machine where they are not the same, then every artifact."""
    for what, old, new in (("weights", was.weights, given["weights"]), ("images", was.images, given["images"])):
        other = [name for name in old if name in new and old[name] != new[name]]
        yield Verdict(what=what, differs=f"{', '.join(other)} are others than those of the run" if other else None)
    for what, a, b in (("versions", was.versions, now.versions), ("machine", was.machine, now.machine)):
        other = [f"{name} {a[name]}, here {b[name]}" for name in a if name in b and a[name] != b[name]]
        yield Verdict(what=what, differs="; ".join(other) or None)
    hashes = {file.path: file.sha256 for file in now.files}
    for name in was.artifacts:
        if name.startswith(f"{TWIN}/"):  # `build` made it, not the run
            continue
        files = [f for f in was.files if f.path.rpartition("/")[0] == name and not f.path.endswith(LOG)]
        other = [file.path for file in files if hashes.get(file.path) != file.sha256]
        other = [path for path in other if not (path.endswith(RECORD) and same_engine(before / path, after / path))]
        yield Verdict(what=name, differs=first_difference(other[0], before, after) if other else None)


def same_engine(before: Path, after: Path) -> bool:
    """Do two records of engines say the same but for the time? Where the former is not at hand, its engine's hash decides."""
    if not before.is_file():
        return True
    old, new = (structs.replace(read(EngineRecord, path), build_s=0.0) for path in (before, after))
    return old == new


def first_difference(path: str, before: Path, after: Path) -> str:
    """What differs first in a file that has another hash, as far as both can be read.

    The folder `before` may come from anyone: no link out of it is followed, and what is no such file just differs.
    """
    old, new = before / path, after / path
    if not (old.is_file() and new.is_file() and old.resolve().is_relative_to(before.resolve())):
        return f"{path} differs"
    try:
        found = _first_in(old, new)
    except (SafetensorError, ErqError, OSError) as e:
        return f"{path} differs: the former one cannot be read ({str(e).splitlines()[0][:200]})"
    return f"{path} differs" + ("" if found is None else f", first in {found}")


def _first_in(old: Path, new: Path) -> str | None:
    if old.suffix == ".safetensors":
        return _first_tensor(load_file(old), load_file(new))
    if old.suffix == ".onnx":
        return _first_of_graph(load_graph(old).model, load_graph(new).model)
    if old.suffix not in (".json", ".txt"):
        return None
    lines = zip(*(path.read_text(encoding="utf-8", errors="replace").splitlines() for path in (old, new)), strict=False)
    return next(
        (f"line {i}: {a.strip()[:80]!r}, now {b.strip()[:80]!r}" for i, (a, b) in enumerate(lines, 1) if a != b), None
    )


def _first_tensor(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> str | None:
    for name in sorted(old | new):
        if name not in old or name not in new:
            return f"tensor {name}, which only one of them has"
        a, b = old[name], new[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"tensor {name}: {a.dtype} {tuple(a.shape)}, now {b.dtype} {tuple(b.shape)}"
        if not torch.equal(a, b):
            return f"tensor {name}: {int((a != b).sum())} of {a.numel()} values"
    return None


def _first_of_graph(old: ir.Model, new: ir.Model) -> str | None:
    for a, b in zip(old.graph, new.graph, strict=False):
        if (a.op_type, a.name) != (b.op_type, b.name):
            return f"node {a.name} ({a.op_type}), now {b.name} ({b.op_type})"
    tensors = ({n: _constant(v) for n, v in model.graph.initializers.items()} for model in (old, new))
    return _first_tensor(*({n: t for n, t in found.items() if t is not None} for found in tensors))


def _constant(value: ir.Value) -> Any:
    tensor = value.const_value
    return None if tensor is None else torch.frombuffer(bytearray(tensor.tobytes() or b"\0"), dtype=torch.uint8)
