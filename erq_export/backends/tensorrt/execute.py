"""Executes a serialized engine on torch tensors: named buffers, one stream, no other CUDA binding.

One engine, one context, one stream. Buffers are made once a batch size and used again; an engine of one profile takes any
batch between its smallest and its largest. Not yet run on a GPU: the order of calls is held against a recording fake.
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
from .package import Package, imported, named, shape

if TYPE_CHECKING:
    import tensorrt as api

_DTYPES = {
    **{"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64},
    **{"INT32": torch.int32, "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool},
}
AGAIN = "build the engine again on this machine: erq-export build OUT"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """An input or output: its name, type, and shape; a dim of -1 is the batch."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def of(self, batch: int) -> tuple[int, ...]:
        return tuple(batch if dim == -1 else dim for dim in self.shape)


@dataclass(frozen=True)
class Buffers:
    """An engine's tensors for one batch size; what is written into `inputs` is what it reads."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class LoadedEngine:
    """An engine in GPU memory, ready to run. Close it, or use it as a context, to keep TensorRT-RTX's compiled kernels.

    runtime_cache: the file that TensorRT-RTX keeps its kernels in, read where it is there and fits; TensorRT has none.
    own_graphs: let TensorRT-RTX capture CUDA graphs by itself; `captured` does it for a package that does not.
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
        self._trt, self._file = trt, runtime_cache
        self.stream: Stream = CudaStream(device) if stream is None else stream
        self._runtime: api.Runtime = trt.Runtime(logger(trt))  # has to outlive the engine
        self._engine: api.ICudaEngine = _deserialized(trt, self._runtime, blob, host_code=host_code)
        self.inputs, self.outputs = _slots(trt, self._engine)
        self.batch = _batch(self._engine, self.inputs)
        self._cache: Any = None
        self.own_graphs = False
        self._context = self._made_context(own_graphs=own_graphs)
        self._buffers: dict[int, Buffers] = {}

    def buffers(self, batch: int) -> Buffers:
        """Those of a batch size, made once. EngineError beyond the sizes that the engine takes."""
        smallest, largest = self.batch
        if not smallest <= batch <= largest:
            raise EngineError(
                f"a batch of {batch}: the engine takes {smallest} to {largest}",
                fix=f"erq-export build OUT --batch 1,8,{max(batch, 8)}",
            )
        if batch not in self._buffers:
            made = [
                {slot.name: torch.empty(slot.of(batch), dtype=slot.dtype, device=self.device) for slot in side}
                for side in (self.inputs, self.outputs)
            ]
            self._buffers[batch] = Buffers(*made)
        return self._buffers[batch]

    def enqueue(self, buffers: Buffers) -> None:
        """Run once on the stream; returns before it is done. EngineError where the engine refuses."""
        context = self._context
        for name, tensor in buffers.inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise EngineError(f"the engine refuses {tuple(tensor.shape)} for {name}", fix=AGAIN)
        for name, tensor in (buffers.inputs | buffers.outputs).items():
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f"the engine refuses the buffer of {name}", fix=AGAIN)
        if missing := context.infer_shapes():
            raise EngineError(f"the engine wants more than it was given: {', '.join(missing)}", fix=AGAIN)
        if not context.execute_async_v3(self.stream.handle):
            raise EngineError("the engine could not be enqueued", fix=AGAIN)

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs on the device, copies of their own; enqueued like any other work of torch's."""
        batch = next(iter(feeds.values())).shape[0]
        buffers = self.buffers(batch)
        for name, tensor in feeds.items():
            buffers.inputs[name].copy_(tensor)
        self.stream.wait_for_current()
        self.enqueue(buffers)
        self.stream.lead_current()
        return {name: tensor.clone() for name, tensor in buffers.outputs.items()}

    def captured(self, buffers: Buffers) -> tuple[Callable[[], None], str]:
        """(a call that enqueues one run, how): "own graph" where the package captures by itself, "CUDA graph", or
        "no CUDA graph: …". It has run before, so that no kernel is compiled and no memory taken while it is captured."""

        def call() -> None:
            self.enqueue(buffers)

        self.stream.wait_for_current()
        for _ in range(2):
            call()
        self.stream.synchronize()
        if self.own_graphs:
            return call, "own graph"
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self.stream.handle):
            return call, f"no CUDA graph: {named(self._trt)} says that this engine cannot be captured"
        try:
            return self.stream.capture(call), "CUDA graph"
        except (RuntimeError, EngineError) as e:
            self.stream.synchronize()
            return call, f"no CUDA graph: {str(e).splitlines()[0][:200]}"

    def memory_bytes(self) -> int:
        """What the context takes for activations, as the engine says."""
        name = "device_memory_size_v2" if hasattr(self._engine, "device_memory_size_v2") else "device_memory_size"
        return int(getattr(self._engine, name))

    def close(self) -> None:
        """Keep what TensorRT-RTX has compiled, where a file was named."""
        if self._cache is not None and self._file is not None:
            self.stream.synchronize()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._file, bytes(self._cache.serialize()))

    def __enter__(self) -> "LoadedEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def _made_context(self, *, own_graphs: bool) -> "api.IExecutionContext":
        config = self._runtime_config(own_graphs=own_graphs)
        made = cast(Any, self._engine).create_execution_context(*(() if config is None else (config,)))
        if made is None:
            raise EngineError(
                f"{named(self._trt)} cannot make a context: is there enough GPU memory?", fix="a smaller --batch"
            )
        return cast("api.IExecutionContext", made)

    def _runtime_config(self, *, own_graphs: bool) -> Any:
        """TensorRT-RTX's own; None where the package's config, if it has one, sets nothing of this."""
        engine, trt = cast(Any, self._engine), self._trt
        config: Any = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
        if config is None or not hasattr(config, "create_runtime_cache"):
            return None
        self._cache = config.create_runtime_cache()
        if self._file is not None and self._file.is_file():
            self._cache.deserialize(self._file.read_bytes())  # False, and unchanged, where it does not fit
        config.set_runtime_cache(self._cache)
        if own_graphs and hasattr(config, "cuda_graph_strategy"):
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.own_graphs = True
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # Compiled when a shape comes first, not in the background of what is timed.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        return config


def _deserialized(trt: ModuleType, runtime: "api.Runtime", blob: bytes, *, host_code: bool) -> "api.ICudaEngine":
    with logger(trt).recording() as records:
        if hasattr(runtime, "get_engine_validity"):
            validity, reasons = runtime.get_engine_validity(blob)
            if validity == trt.EngineValidity.INVALID:
                why = reasons or errors_in(records)
                raise MachineError(f"{named(trt)} says that this engine cannot run here: {why}", fix=AGAIN)
        if host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(blob)
        if engine is None:
            raise EngineError(f"{named(trt)} cannot load the engine: {errors_in(records)}", fix=AGAIN)
    return engine


def _slots(trt: ModuleType, engine: "api.ICudaEngine") -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    inputs: list[Slot] = []
    outputs: list[Slot] = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        dtype = engine.get_tensor_dtype(name).name
        if dtype not in _DTYPES:
            raise EngineError(
                f"{name} is of type {dtype}, which torch has not", fix="a graph of float inputs and outputs"
            )
        slot = Slot(name=name, dtype=_DTYPES[dtype], shape=shape(engine.get_tensor_shape(name)))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(slot)
    return tuple(inputs), tuple(outputs)


def _batch(engine: "api.ICudaEngine", inputs: tuple[Slot, ...]) -> tuple[int, int]:
    """(smallest, largest) batch: of the profile where the first dim is dynamic, else the one there is."""
    first = inputs[0]
    if first.shape[0] != -1:
        return first.shape[0], first.shape[0]
    smallest, _, largest = engine.get_tensor_profile_shape(first.name, 0)
    return int(smallest[0]), int(largest[0])
