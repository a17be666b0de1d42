"""Executes a serialized engine on torch tensors: no other CUDA binding, buffers that are used again, any batch it takes.

Not yet run on a GPU: the order of calls is held against a recording fake of each package (tests/support/fake_tensorrt.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from erq_export.backends.cuda_stream import CudaStream, Stream
from erq_export.backends.watch import logger
from erq_export.contract.errors import EngineError, MachineError
from erq_export.contract.files import write_bytes

from .build import errors_in
from .package import Package, imported, named
from .signature import Signature

if TYPE_CHECKING:
    import tensorrt as api

AGAIN = "build the engine again on this machine: erq-export build OUT"
OWN_GRAPH, CUDA_GRAPH = "own graph", "CUDA graph"  # how a call is captured


@dataclass(frozen=True)
class Buffers:
    """An engine's tensors for one batch size; what is written into `inputs` is what it reads."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class LoadedEngine:
    """An engine in GPU memory, ready to run. Close it, or use it as a context, to keep TensorRT-RTX's compiled kernels.

    runtime_cache: the file that TensorRT-RTX keeps its kernels in, read where it is there and fits; TensorRT has none.
    own_graphs: let TensorRT-RTX capture CUDA graphs by itself; where a package does not, `captured` does.
    host_code: the engine carries its own runtime (any_version), which is executed: only with an engine that is trusted.
    Raises MachineError where the package is missing or says that this GPU cannot run it, EngineError where it is no engine.
    """

    def __init__(
        self,
        blob: bytes,
        *,
        package: Package,
        device: torch.device,
        runtime_cache: Path | None = None,
        own_graphs: bool = True,
        host_code: bool = False,
        stream: Stream | None = None,
    ) -> None:
        trt = imported(package)
        self.package, self.device = package, device
        self.own_graphs = False
        self._trt, self._file, self._wants_own_graphs = trt, runtime_cache, own_graphs
        self._stream: Stream = CudaStream(device) if stream is None else stream
        self._runtime: api.Runtime = trt.Runtime(logger(trt))  # has to outlive the engine
        self._engine: api.ICudaEngine = _deserialized(trt, self._runtime, blob, host_code=host_code)
        self.signature = Signature.of(trt, self._engine)
        self._cache: Any = None
        self._context = self._new_context()
        self._buffers: dict[int, Buffers] = {}

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs on the device, copies of their own; enqueued like any other work of torch's.

        EngineError beyond the batches that the engine takes.
        """
        buffers = self._buffers_of(_batch(feeds))
        for name, tensor in feeds.items():
            buffers.inputs[name].copy_(tensor)
        self._enqueue(self._context, buffers)
        return {name: tensor.clone() for name, tensor in buffers.outputs.items()}

    def captured(self, feeds: Mapping[str, Tensor]) -> tuple[Callable[[], None], str]:
        """(a call that enqueues one run on these inputs, how): "own graph" where the package captures by itself, "CUDA
        graph", or "no CUDA graph: " and why.

        Context and buffers are its own, so that runs in between change nothing that was captured. It has run before that:
        no kernel is compiled and no memory taken while it is captured.
        """
        batch, signature = _batch(feeds), self.signature
        signature.check(batch)
        inputs = {s.name: feeds[s.name].to(self.device, s.dtype, copy=True).contiguous() for s in signature.inputs}
        buffers = Buffers(inputs, {s.name: s.empty(batch, self.device) for s in signature.outputs})
        context = self._new_context()

        def call() -> None:
            self._enqueue(context, buffers)

        call()
        call()
        self.synchronize()
        if self.own_graphs:
            return call, OWN_GRAPH
        if hasattr(context, "is_stream_capturable"):
            with self._stream.turn() as handle:
                capturable = context.is_stream_capturable(handle)
            if not capturable:
                return call, f"no CUDA graph: {named(self._trt)} says that this engine cannot be captured"
        try:
            return self._stream.capture(call), CUDA_GRAPH
        except (RuntimeError, EngineError) as e:
            self.synchronize()
            return call, f"no CUDA graph: {str(e).splitlines()[0][:200]}"

    def synchronize(self) -> None:
        """Return when all that was enqueued is done."""
        self._stream.synchronize()

    def memory_bytes(self) -> int:
        """What a context takes for activations, as the engine says."""
        name = "device_memory_size_v2" if hasattr(self._engine, "device_memory_size_v2") else "device_memory_size"
        return int(getattr(self._engine, name))

    def close(self) -> None:
        """Keep what TensorRT-RTX has compiled, where a file was named."""
        if self._cache is not None and self._file is not None:
            self.synchronize()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._file, bytes(self._cache.serialize()))

    def __enter__(self) -> "LoadedEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def _buffers_of(self, batch: int) -> Buffers:
        """Those of a batch size, made once."""
        self.signature.check(batch)
        if batch not in self._buffers:
            sides = (self.signature.inputs, self.signature.outputs)
            made = [{slot.name: slot.empty(batch, self.device) for slot in side} for side in sides]
            self._buffers[batch] = Buffers(*made)
        return self._buffers[batch]

    def _enqueue(self, context: "api.IExecutionContext", buffers: Buffers) -> None:
        """Run once; returns before it is done. EngineError where the engine refuses."""
        for name, tensor in buffers.inputs.items():
            if not cast(Any, context).set_input_shape(name, tuple(tensor.shape)):  # the stubs want Dims
                raise EngineError(f"the engine refuses {tuple(tensor.shape)} for {name}", fix=AGAIN)
        for name, tensor in (*buffers.inputs.items(), *buffers.outputs.items()):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f"the engine refuses the buffer of {name}", fix=AGAIN)
        if missing := context.infer_shapes():
            raise EngineError(f"the engine wants more than it was given: {', '.join(missing)}", fix=AGAIN)
        with self._stream.turn() as handle:
            if not context.execute_async_v3(handle):
                raise EngineError("the engine could not be enqueued", fix=AGAIN)

    def _new_context(self) -> "api.IExecutionContext":
        config = self._runtime_config()
        made = cast(Any, self._engine).create_execution_context(*(() if config is None else (config,)))
        if made is None:
            what = f"{named(self._trt)} cannot make a context: is there enough GPU memory?"
            raise EngineError(
                what, fix="erq-export build OUT --batch with a smaller largest size; of a detector a smaller --canvas"
            )
        return cast("api.IExecutionContext", made)

    def _runtime_config(self) -> Any:
        """TensorRT-RTX's own; None where the package's config, if it has one, sets nothing of this."""
        engine, trt = cast(Any, self._engine), self._trt
        config: Any = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
        if config is None or not hasattr(config, "create_runtime_cache"):
            return None
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._file is not None and self._file.is_file():
                self._cache.deserialize(self._file.read_bytes())  # False, and unchanged, where it does not fit
        config.set_runtime_cache(self._cache)
        if self._wants_own_graphs and hasattr(config, "cuda_graph_strategy"):
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.own_graphs = True
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # Compiled when a shape comes first, not in the background of what is timed.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        return config


def _batch(feeds: Mapping[str, Tensor]) -> int:
    return next(iter(feeds.values())).shape[0]


def _deserialized(trt: ModuleType, runtime: "api.Runtime", blob: bytes, *, host_code: bool) -> "api.ICudaEngine":
    with logger(trt).recording() as records:
        if hasattr(runtime, "get_engine_validity"):
            validity, reasons = runtime.get_engine_validity(blob)
            if validity == trt.EngineValidity.INVALID:
                raise MachineError(
                    f"{named(trt)} says that this engine cannot run here: {reasons or errors_in(records)}", fix=AGAIN
                )
        if host_code:
            runtime.engine_host_code_allowed = True
        engine: api.ICudaEngine | None = runtime.deserialize_cuda_engine(blob)
        if engine is None:
            raise EngineError(f"{named(trt)} cannot load the engine: {errors_in(records)}", fix=AGAIN)
    return engine
