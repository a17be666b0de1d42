"""Builds engines from ONNX files, as they are typed, and keeps everything that the builder says."""

import functools
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from erq_export.backends.watch import BuildProgress, LogLine, Watch, logger
from erq_export.contract.engine_spec import Hardware
from erq_export.contract.errors import EngineError, SpecError

from .package import Package, named, require, shape, targets
from .setting import Setting, timings

if TYPE_CHECKING:
    import tensorrt as api

# Warnings after which the network is no longer the graph that was written.
_RETYPED = re.compile(r"Defaulting to INT8|UINT8 zero_point|Attempting to cast down")
_PARSING = re.compile(r"Parsing node: (\S+) \[")

_CHECK = "mend the node that the message names; quantizers must be int8 with zero point 0, scales constant"


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
    flags: tuple[str, ...] = ()  # what was set beside the batch, as the record names it
    timing_cache: bytes | None = field(default=None, repr=False)

    @property
    def log(self) -> str:
        """Every message, a line each."""
        text = "".join(f"[{severity}] {message}\n" for severity, message in self.records)
        return text.replace(str(self.source), self.source.name)  # no path of the machine


def build_engine(
    onnx_path: Path,
    *,
    package: Package,
    compute_capabilities: Sequence[str] = (),
    batch: tuple[int, int, int] = (1, 8, 32),
    on_progress: BuildProgress | None = None,
    workspace_mib: int | None = None,
    hardware: Hardware = "this",
    any_version: bool = False,
    timing_cache: bytes | None = None,
) -> Engine:
    """Compile a graph as it is typed: explicit Q/DQ, no precision flags.

    compute_capabilities: such as ("8.6", "8.9", "12.0"); TensorRT-RTX only.
    batch: (smallest, optimal, largest), for every input whose first dim is dynamic.
    on_progress: called with (phase, steps done, steps in all), from another thread; returning False cancels the build.
    hardware, any_version: see `EngineSpec`; TensorRT only.  timing_cache: what an earlier build on this GPU timed.
    """
    trt = require(package)
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise SpecError(f"batch={batch} is not 1 <= smallest <= optimal <= largest", fix="for example batch=(1, 8, 32)")
    setting = Setting(
        compute_capabilities=targets(trt, compute_capabilities),
        workspace_mib=workspace_mib,
        hardware=hardware,
        any_version=any_version,
        timing_cache=timing_cache,
    )
    setting.check(trt)
    watch = Watch(on_progress)
    start = time.perf_counter()
    with logger(trt).recording() as records:
        made = watch.run(functools.partial(_build, trt, onnx_path, setting, batch, watch, records))
    if watch.failure is not None:
        raise watch.failure
    if watch.stopped.is_set():
        raise EngineError("the engine build was cancelled", fix="run the build stage again: erq-export build OUT")
    if made is None:
        fix = _CHECK if workspace_mib is None else f"{_CHECK}; or workspace_mib={workspace_mib} is too small"
        raise EngineError(f"{named(trt)} cannot build {onnx_path}: {errors_in(records)}", fix=fix)
    return Engine(
        blob=made.blob,
        source=onnx_path,
        records=tuple(records),
        package=package,
        version=str(trt.__version__),
        compute_capabilities=tuple(compute_capabilities),
        seconds=time.perf_counter() - start,
        flags=made.flags,
        timing_cache=made.timing_cache,
    )


@dataclass(frozen=True)
class _Built:
    blob: bytes
    flags: tuple[str, ...]
    timing_cache: bytes | None


def _build(
    trt: ModuleType,
    onnx_path: Path,
    setting: Setting,
    batch: tuple[int, int, int],
    watch: Watch,
    records: Iterable[LogLine],
) -> _Built | None:
    """The serialized engine, or None after a failed or cancelled build."""
    builder: api.Builder = trt.Builder(logger(trt))
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only way from 11 on
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser: api.OnnxParser = trt.OnnxParser(network, logger(trt))  # owns the weights: it has to outlive the build
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = (f"{e.node_name()} ({e.node_operator()}): {e.desc()}" if e.node_name() else e.desc() for e in errors)
        raise EngineError(f"{named(trt)} cannot parse {onnx_path}: {'; '.join(reasons)}", fix=_CHECK)
    _refuse_retyping(records, f"{named(trt)} would silently retype {onnx_path}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # puts the plan with its dtypes into the log
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if dynamic := {tensor.name: shape(tensor.shape) for tensor in inputs if -1 in shape(tensor.shape)}:
        config.add_optimization_profile(_profile(builder.create_optimization_profile(), dynamic, batch))
    flags = setting.apply(trt, config)
    monitor = watch.monitor(trt)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else _Built(bytes(plan), flags, timings(trt, config))


def _profile(
    profile: "api.IOptimizationProfile", shapes: dict[str, tuple[int, ...]], batch: tuple[int, int, int]
) -> "api.IOptimizationProfile":
    for name, (first, *rest) in shapes.items():
        if first != -1 or -1 in rest:
            raise EngineError(
                f"input {name!r} has shape {(first, *rest)}: only its first dim may be dynamic",
                fix="export the model with a fixed image size",
            )
        smallest, optimal, largest = ((size, *rest) for size in batch)
        cast(Any, profile).set_shape(name, smallest, optimal, largest)  # the stubs want Dims, the package takes tuples
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


def errors_in(records: Iterable[LogLine]) -> str:
    """What went wrong, without the driver look-ups that fail on every machine without a GPU."""
    errors = [text for severity, text in records if severity.endswith("ERROR") and "catchCudaError" not in text]
    return "; ".join(errors) or "the builder gives no reason"
