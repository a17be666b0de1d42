"""Builds engines from ONNX files with TensorRT 10/11 or TensorRT-RTX 1.x: the only file that imports either package.

The packages differ in what they have, not in how it is called: features are detected, versions never compared.
TensorRT-RTX compiles ahead of time, without a GPU, for any of the compute capabilities it knows.
"""

import functools
import importlib
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

from erq_export.backends.cuda_driver import cuda_device_count
from erq_export.backends.watch import BuildProgress, LogLine, Watch, logger
from erq_export.contract.errors import EngineError, MachineError, SpecError

Package: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]

# Warnings after which the network is no longer the graph that was written.
_RETYPED = re.compile(r"Defaulting to INT8|UINT8 zero_point|Attempting to cast down")
_PARSING = re.compile(r"Parsing node: (\S+) \[")
_CAPABILITY = re.compile(r"SM(\d+)(\d)")

_CHECK = "mend the node that the message names; quantizers must be int8 with zero point 0, scales constant"
_ELSEWHERE = (
    "--to tensorrt-rtx needs no GPU; from its output the GPU machine builds later: erq-export build OUT --to tensorrt"
)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A serialized engine and everything that the builder said, its plan included (`exporters.tensorrt.plan` reads it).

    One plan serves all compute capabilities (measured on RTX 1.7.1). Where none was given the engine is for the
    package's default targets (RTX) or for this machine's GPU (TensorRT).
    """

    blob: bytes = field(repr=False)
    source: Path
    records: tuple[LogLine, ...] = field(repr=False)
    package: Package
    version: str
    compute_capabilities: tuple[str, ...]
    seconds: float

    @property
    def log(self) -> str:
        """Every message, a line each."""
        text = "".join(f"[{severity}] {message}\n" for severity, message in self.records)
        return text.replace(str(self.source), self.source.name)  # no path of the machine


def available(package: str) -> str | None:
    """The package's version, or None where it cannot be imported."""
    try:
        return str(importlib.import_module(package).__version__)
    except (ImportError, OSError):
        return None


def require(package: str) -> ModuleType:
    """The imported package. MachineError where it, or the GPU that it builds on, is missing: asked before any work."""
    try:
        trt = importlib.import_module(package)
    except (ImportError, OSError) as error:
        if package == "tensorrt":
            fix = f"install tensorrt from NVIDIA's own package index; {_ELSEWHERE}"
        else:
            fix = "pip install 'erq-export[tensorrt-rtx]'"
        raise MachineError(f"{package} cannot be imported: {error}", fix=fix) from error
    if package == "tensorrt" and cuda_device_count() == 0:
        raise MachineError("tensorrt builds on the GPU it builds for, and this machine has none", fix=_ELSEWHERE)
    return trt


def build_engine(
    onnx_path: Path,
    *,
    package: Package,
    compute_capabilities: Sequence[str] = (),
    batch: tuple[int, int, int] = (1, 8, 32),
    on_progress: BuildProgress | None = None,
    workspace_mib: int | None = None,
) -> Engine:
    """Compile a graph as it is typed: explicit Q/DQ, no precision flags.

    compute_capabilities: such as ("8.6", "8.9", "12.0"); TensorRT-RTX only.
    batch: (smallest, optimal, largest), for every input whose first dim is dynamic.
    on_progress: called with (phase, steps done, steps in all), from another thread; returning False cancels the build.
    """
    trt = require(package)
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise SpecError(f"batch={batch} is not 1 <= smallest <= optimal <= largest", fix="for example batch=(1, 8, 32)")
    wanted = targets(trt, compute_capabilities)
    watch = Watch(on_progress)
    start = time.perf_counter()
    with logger(trt).recording() as records:
        blob = watch.run(functools.partial(_build, trt, onnx_path, wanted, batch, watch, workspace_mib, records))
    if watch.failure is not None:
        raise watch.failure
    if watch.stopped.is_set():
        raise EngineError("the engine build was cancelled", fix="run the build stage again: erq-export build OUT")
    if blob is None:
        fix = _CHECK if workspace_mib is None else f"{_CHECK}; or workspace_mib={workspace_mib} is too small"
        raise EngineError(f"{_named(trt)} cannot build {onnx_path}: {_errors(records)}", fix=fix)
    return Engine(
        blob=blob,
        source=onnx_path,
        records=tuple(records),
        package=package,
        version=str(trt.__version__),
        compute_capabilities=tuple(compute_capabilities),
        seconds=time.perf_counter() - start,
    )


def _named(trt: ModuleType) -> str:
    return f"{trt.__name__} {trt.__version__}"


def targets(trt: ModuleType, names: Sequence[str]) -> list[Any]:
    """The package's own values for "8.9" and its like, each once. SpecError naming what it builds for otherwise."""
    if not names:
        return []
    if not hasattr(trt, "ComputeCapability"):
        raise SpecError(
            f"{_named(trt)} builds for the GPU it runs on, not for compute capability {', '.join(names)}",
            fix="leave --capability out, or --to tensorrt-rtx",
        )
    members = trt.ComputeCapability.__members__.items()
    known = {f"{match[1]}.{match[2]}": member for name, member in members if (match := _CAPABILITY.fullmatch(name))}
    if unknown := [name for name in names if name not in known]:
        raise SpecError(
            f"compute capability {', '.join(unknown)}: {_named(trt)} builds for {', '.join(known)}",
            fix="nvidia-smi --query-gpu=compute_cap --format=csv prints your GPU's; --to tensorrt serves the others",
        )
    return [known[name] for name in dict.fromkeys(names)]


def _build(
    trt: ModuleType,
    onnx_path: Path,
    targets: Sequence[Any],
    batch: tuple[int, int, int],
    watch: Watch,
    workspace_mib: int | None,
    records: Iterable[LogLine],
) -> bytes | None:
    """The serialized engine, or None after a failed or cancelled build."""
    builder = trt.Builder(logger(trt))
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only way from 11 on
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger(trt))  # owns the weights: it has to outlive the build
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = (f"{e.node_name()} ({e.node_operator()}): {e.desc()}" if e.node_name() else e.desc() for e in errors)
        raise EngineError(f"{_named(trt)} cannot parse {onnx_path}: {'; '.join(reasons)}", fix=_CHECK)
    _refuse_retyping(records, f"{_named(trt)} would silently retype {onnx_path}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # puts the plan with its dtypes into the log
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if dynamic := {tensor.name: tuple(tensor.shape) for tensor in inputs if -1 in tuple(tensor.shape)}:
        config.add_optimization_profile(_profile(builder.create_optimization_profile(), dynamic, batch))
    if workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(target, index)
    monitor = watch.monitor(trt)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else bytes(plan)


def _profile(profile: Any, shapes: dict[str, tuple[int, ...]], batch: tuple[int, int, int]) -> Any:
    for name, (first, *rest) in shapes.items():
        if first != -1 or -1 in rest:
            raise EngineError(
                f"input {name!r} has shape {(first, *rest)}: only its first dim may be dynamic",
                fix="export the model with a fixed image size",
            )
        profile.set_shape(name, *((size, *rest) for size in batch))
    return profile


def _refuse_retyping(records: Iterable[LogLine], problem: str) -> None:
    """The parser only warns when it changes a type; the line before the warning says at which node it was."""
    node = "?"
    for severity, message in records:
        if match := _PARSING.search(message):
            node = match[1]
        if severity != "VERBOSE" and _RETYPED.search(message):
            raise EngineError(
                f"{problem} at node {node}: {message}",
                fix="give every QuantizeLinear and DequantizeLinear an explicit int8 zero point of 0",
            )


def _errors(records: Iterable[LogLine]) -> str:
    """What went wrong, without the driver look-ups that fail on every machine without a GPU."""
    errors = [text for severity, text in records if severity.endswith("ERROR") and "catchCudaError" not in text]
    return "; ".join(errors) or "the builder gives no reason"
