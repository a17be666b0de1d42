"""Loading an engine: its record is read first, and every refusal says what is other and what builds the engine again.

An engine is code, which runs with the user's rights: one without a record beside it is not loaded unless it is trusted. What
is wrong with the file is an EngineError (exit code 6), what is wrong with this machine a MachineError (3).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import torch

from erq_export.backends.device import gpu_here
from erq_export.backends.tensorrt import Package, available
from erq_export.backends.tensorrt.execute import LoadedEngine
from erq_export.backends.tensorrt.package import imported
from erq_export.contract.engine import ENGINE, EngineRecord, Gpu
from erq_export.contract.errors import DataError, EngineError, MachineError
from erq_export.contract.files import graph_sha256
from erq_export.contract.output.folder import TWIN
from erq_export.contract.records import read
from erq_export.contract.targets import TARGETS
from erq_export.validate.engine_runner import EngineRunner

TARGET_OF = {target.package: target.name for target in TARGETS.values() if target.package is not None}
AMPERE = (8, 0)
MODEL_ENGINE = "model.engine"


@dataclass(frozen=True, kw_only=True)
class Here:
    """What of this machine an engine must fit: the package's version, None where it is missing, and the GPU."""

    version: str | None
    gpu: Gpu | None

    @classmethod
    def of(cls, package: str) -> "Here":
        return cls(version=available(package), gpu=gpu_here())


def engine_runner(
    engine: Path,
    *,
    graph: Path | None = None,
    trust: bool = False,
    kernels: Path | None = None,
    own_graphs: bool = True,
    name: str = "engine",
    n_outputs: int = 1,
    here: Callable[[str], Here] = Here.of,
) -> EngineRunner:
    """An engine of one input, a classifier's or that of a detector's part, as a runner. What is asked, and what is refused:
    `loaded`."""
    ready = loaded(engine, graph=graph, trust=trust, kernels=kernels, own_graphs=own_graphs, here=here)
    return EngineRunner(ready, name=name, n_outputs=n_outputs)


def loaded(
    engine: Path,
    *,
    graph: Path | None = None,
    trust: bool = False,
    kernels: Path | None = None,
    own_graphs: bool = True,
    here: Callable[[str], Here] = Here.of,
) -> LoadedEngine:
    """The engine of a file, ready to run on this machine's GPU; all that can be refused is refused before it is loaded.

    graph: that it must have been built from, None for the model.onnx of the folder above, if there is one.  trust: load an
    engine that has no record.  kernels: the folder where TensorRT-RTX keeps what it compiles for this GPU, None: nowhere;
    kernels are code like the engine, so it is a folder that nobody else writes.
    """
    record, blob = checked(engine, graph=graph, trust=trust, here=here)
    package = _package_of(engine) if record is None else cast(Package, record.package)
    cache = None if kernels is None else kernels / f"{hashlib.sha256(blob).hexdigest()}.cache"
    return LoadedEngine(
        blob,
        package=package,
        device=torch.device("cuda", torch.cuda.current_device()),
        runtime_cache=cache,
        own_graphs=own_graphs,
        host_code=record is not None and "any_version" in record.flags,
    )


def refusal(engine: Path) -> str | None:
    """Why the engine cannot be loaded on this machine; None where it can."""
    try:
        checked(engine)
    except (MachineError, EngineError) as e:
        return e.problem
    return None if gpu_here() else f"{engine} needs a GPU, and torch finds none here"


def runs_here(engine: Path) -> bool:
    """Can the engine be loaded on this machine: its GPU and package are here, and the file is the one that was recorded?"""
    return refusal(engine) is None


def checked(
    engine: Path, *, graph: Path | None = None, trust: bool = False, here: Callable[[str], Here] = Here.of
) -> tuple[EngineRecord | None, bytes]:
    """(record, engine) of a file that may be loaded here; the record is None for a trusted engine without one.

    Raises EngineError or MachineError, each with the command that builds the engine again.
    """
    record = _record_of(engine, trust=trust)
    try:
        blob = engine.read_bytes()
    except OSError as e:
        raise EngineError(f"cannot read {engine}: {e.strerror}", fix=rebuild(engine, record)) from e
    if record is not None:
        check_file(engine, blob, record)
        check_graph(engine, graph or engine.parent.parent / "model.onnx", record, wanted=graph is not None)
        check_machine(engine, record, here(record.package))
    return record, blob


def _record_of(engine: Path, *, trust: bool) -> EngineRecord | None:
    path = engine.parent / ENGINE
    if not path.is_file():
        if trust:
            return None
        raise EngineError(
            f"{engine} has no {ENGINE} beside it: nothing says what it was built from, and loading an engine runs its code",
            fix=f"{rebuild(engine)}; --trust-engine loads it all the same",
        )
    try:
        return read(EngineRecord, path)
    except DataError as e:
        raise EngineError(e.problem, fix=f"move {path} away, then {rebuild(engine)}") from e


def check_file(engine: Path, blob: bytes, record: EngineRecord) -> None:
    """EngineError where the file is not the one that was recorded."""
    if len(blob) != record.bytes:
        what = "truncated" if len(blob) < record.bytes else "changed"
        problem = f"{engine} has {len(blob)} bytes, its record {record.bytes}: it was {what}"
    elif hashlib.sha256(blob).hexdigest() != record.engine_sha256:
        problem = f"{engine} is not the file that its record was written for: it was damaged or changed"
    else:
        return
    raise EngineError(problem, fix=f"move {engine} away, then {rebuild(engine, record)}")


def check_graph(engine: Path, graph: Path, record: EngineRecord, *, wanted: bool) -> None:
    """EngineError where the graph is another one; where it is gone, only if it was asked for."""
    if not graph.is_file():
        if wanted:
            raise EngineError(f"there is no graph {graph} to hold {engine} against", fix=rebuild(engine, record))
        return
    if (found := graph_sha256(graph)) != record.graph_sha256:
        raise EngineError(
            f"{engine} was built from another graph than {graph}: {record.graph_sha256[:12]}…, not {found[:12]}…",
            fix=f"{rebuild(engine, record)}; where the graph is not what the run wrote, move {graph} away first",
        )


def check_machine(engine: Path, record: EngineRecord, here: Here) -> None:
    """MachineError where the package, its version, or the GPU is not what the engine was built for."""
    again, package = rebuild(engine, record), record.package
    if here.version is None:
        imported(package)  # says what is missing, and how it is installed
        raise MachineError(f"{package} says no version", fix="install it again")
    if here.version != record.version and "any_version" not in record.flags:
        raise MachineError(
            f"{engine} was built with {package} {record.version}, here is {here.version}: it loads its own engines alone",
            fix=again,
        )
    if here.gpu is None:
        wanted = record.gpu.name if record.gpu else f"compute capability {', '.join(record.compute_capabilities)}"
        raise MachineError(
            f"{engine} needs a GPU ({wanted}), and torch finds none here", fix=f"there, if needed: {again}"
        )
    if problem := unfit(record, here.gpu):
        raise MachineError(f"{engine} {problem}, here is {here.gpu.name} ({here.gpu.capability})", fix=again)


def unfit(record: EngineRecord, gpu: Gpu) -> str | None:
    """Why an engine does not run on a GPU, as it reads behind its name; None where it does, as far as the record says."""
    if record.gpu is None:
        known = record.compute_capabilities  # none were named: the package knows for which it built
        return None if not known or gpu.capability in known else f"was built for compute capability {', '.join(known)}"
    if "hardware=ampere" in record.flags:
        return None if _numbers(gpu.capability) >= AMPERE else "was built for GPUs from Ampere (8.0) on"
    if "hardware=capability" in record.flags:
        same = gpu.capability == record.gpu.capability
        return None if same else f"was built for compute capability {record.gpu.capability}"
    return None if gpu == record.gpu else f"was built on {record.gpu.name} ({record.gpu.capability})"


def rebuild(engine: Path, record: EngineRecord | None = None) -> str:
    """The command that builds an engine again, from where it lies: OUT/<target>/engine, OUT/twin/<target>/engine, or of a
    detector OUT/<target>/<part>/engine, whose batches are those of the part."""
    folder, owner = engine.absolute().parent, _owner(engine)
    part, target, out = owner != folder.parent, owner.name, owner.parent
    if target not in TARGET_OF.values() or folder.name != "engine":
        return "build it again from its graph on this machine"
    twin = " --twin" if out.name == TWIN else ""
    words = f"erq-export build {out.parent if twin else out} --to {target}{twin}"
    if record is not None and not part:
        batch = record.batch
        words += f" --batch {batch.smallest},{batch.optimal},{batch.largest}"
    gpu = gpu_here()
    return words if gpu is None or target != TARGET_OF["tensorrt_rtx"] else f"{words} --capability {gpu.capability}"


def _owner(engine: Path) -> Path:
    """OUT/<target>, in which OUT/<target>/engine or OUT/<target>/<part>/engine lies."""
    above = engine.absolute().parent.parent
    return above if above.name in TARGET_OF.values() else above.parent


def _package_of(engine: Path) -> Package:
    """Of an engine without a record: by the target whose folder it lies in, else the package that is here."""
    by_folder = {target: package for package, target in TARGET_OF.items()}.get(_owner(engine).name)
    known = [package for package in get_args(Package) if available(package)]
    if by_folder is None and not known:
        raise MachineError("no TensorRT package can be imported", fix="pip install 'erq-export[tensorrt-rtx]'")
    return cast(Package, by_folder or known[0])


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
