"""Packages that look like TensorRT 10, TensorRT 11 and TensorRT-RTX, and write down every call.

What a version has removed is absent (AttributeError), so a call that only another version has ends the test. An engine,
run, writes into its output, image by image, the image's sum plus 0, 1, 2 … for its classes (`expected`).
"""

import ctypes
import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch

Surface = Literal["10", "11", "rtx"]
PIXELS, N_CLASSES = (3, 2, 2), 5
VALUES = 12  # of an image


class FakeStream:
    """A stream that runs at once: turns are counted, captured calls are replayed."""

    def __init__(self, calls: list[tuple[Any, ...]], *, captures: bool = True) -> None:
        self.calls, self.captures = calls, captures

    @contextmanager
    def turn(self) -> Iterator[int]:
        yield 77

    def synchronize(self) -> None:
        self.calls.append(("synchronize",))

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        self.calls.append(("capture begins",))
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        call()
        self.calls.append(("capture ends",))
        return lambda: self.calls.append(("replay",))


def enumeration(name: str, *members: str) -> Any:
    return enum.IntEnum(name, members, start=0)


def fake(surface: Surface, *, version: str = "1.0", batch: tuple[int, int, int] = (1, 8, 32), **faults: Any) -> Any:
    """The package. `calls` has what was called, in order.

    faults: `validity` ("INVALID"), `capturable` (False), `refuses` (a method that returns False or None), `cache_fits`.
    """
    trt: Any = ModuleType("tensorrt_rtx" if surface == "rtx" else "tensorrt")
    trt.__version__, trt.calls = version, []
    calls, refuses = trt.calls, faults.get("refuses")

    def note(name: str, *args: Any) -> bool:
        calls.append((name, *args))
        return name != refuses

    class ILogger:
        Severity = enumeration("Severity", "ERROR", "VERBOSE")

    class IProgressMonitor:
        pass

    class Settings:
        """Attributes that may be set, each written down; others are refused."""

        known: tuple[str, ...] = ()

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in self.known:
                raise AttributeError(f"{type(self).__name__} of {surface} has no {name}")
            note(name, getattr(value, "name", value))

    class Config(Settings):
        known = ("profiling_verbosity", "progress_monitor", "hardware_compatibility_level")
        known += ("num_compute_capabilities",) if surface == "rtx" else ()

        def add_optimization_profile(self, profile: Any) -> int:
            note("add_optimization_profile", *profile.shapes)
            return 0

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            note("set_memory_pool_limit", pool.name, size)

        def set_flag(self, flag: Any) -> None:
            note("set_flag", flag.name)

        def create_timing_cache(self, blob: bytes) -> Any:
            note("create_timing_cache", blob)
            return SimpleNamespace(serialize=lambda: blob + b"+")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            object.__setattr__(self, "cache", cache)
            return note("set_timing_cache", ignore_mismatch)

        def get_timing_cache(self) -> Any:
            note("get_timing_cache")
            return getattr(self, "cache", None)

    class RtxConfig(Config):
        def set_compute_capability(self, target: Any, index: int) -> None:
            note("set_compute_capability", target.name, index)

    class Profile:
        def __init__(self) -> None:
            self.shapes: list[Any] = []

        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            self.shapes += [name, *shapes]

    class Builder:
        def __init__(self, logger: Any) -> None:
            note("Builder")

        def create_network(self, flags: int) -> Any:
            note("create_network", flags)
            tensor = SimpleNamespace(name="pixels", shape=(-1, *PIXELS))
            return SimpleNamespace(num_inputs=1, get_input=lambda i: tensor)

        def create_builder_config(self) -> Any:
            return RtxConfig() if surface == "rtx" else Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            return b"engine" if note("build_serialized_network") else None

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Any, logger: Any) -> None:
            note("OnnxParser")

        def parse_from_file(self, path: str) -> bool:
            return note("parse_from_file")

    trt.ILogger, trt.IProgressMonitor, trt.Builder, trt.OnnxParser = ILogger, IProgressMonitor, Builder, OnnxParser
    trt.NetworkDefinitionCreationFlag = enumeration("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED")
    if surface == "11":
        trt.NetworkDefinitionCreationFlag = enumeration("NetworkDefinitionCreationFlag", "PREFER_AOT_PYTHON_PLUGINS")
    trt.ProfilingVerbosity = enumeration("ProfilingVerbosity", "NONE", "DETAILED")
    trt.MemoryPoolType = enumeration("MemoryPoolType", "WORKSPACE")
    trt.BuilderFlag = enumeration("BuilderFlag", "VERSION_COMPATIBLE")
    trt.HardwareCompatibilityLevel = enumeration(
        "HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"
    )
    trt.TensorIOMode = enumeration("TensorIOMode", "NONE", "INPUT", "OUTPUT")
    trt.DataType = enumeration("DataType", "FLOAT", "HALF", "FP8")

    class Context:
        def __init__(self) -> None:
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shapes[name] = shape
            return note("set_input_shape", name, shape)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return note("set_tensor_address", name)

        def infer_shapes(self) -> list[str]:
            return [] if note("infer_shapes") else ["pixels"]

        def execute_async_v3(self, stream: int) -> bool:
            n = self.shapes["pixels"][0]
            pixels = (ctypes.c_float * (n * VALUES)).from_address(self.addresses["pixels"])
            logits = (ctypes.c_float * (n * N_CLASSES)).from_address(self.addresses["logits"])
            for i in range(n):
                for k in range(N_CLASSES):
                    logits[i * N_CLASSES + k] = sum(pixels[i * VALUES : (i + 1) * VALUES]) + k
            return note("execute_async_v3", stream)

    class RtxContext(Context):
        def is_stream_capturable(self, stream: int) -> bool:
            note("is_stream_capturable", stream)
            return bool(faults.get("capturable", True))

    class RuntimeConfig(Settings):
        known = ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy")
        cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = None

        def create_runtime_cache(self) -> Any:
            note("create_runtime_cache")
            return SimpleNamespace(
                deserialize=lambda blob: note("deserialize", blob) and faults.get("cache_fits", True),
                serialize=lambda: b"kernels",
            )

        def set_runtime_cache(self, cache: Any) -> bool:
            return note("set_runtime_cache")

    class Engine:
        num_io_tensors = 2
        device_memory_size_v2 = 1000

        def get_tensor_name(self, i: int) -> str:
            return ("pixels", "logits")[i]

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType[faults.get("dtype", "FLOAT")]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (faults.get("fixed", -1), *(PIXELS if name == "pixels" else (N_CLASSES,)))

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name == "pixels" else trt.TensorIOMode.OUTPUT

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [(size, *PIXELS) for size in batch]

        def create_execution_context(self, *config: Any) -> Any:
            made = RtxContext() if surface == "rtx" else Context()
            return made if note("create_execution_context", *(type(c).__name__ for c in config)) else None

    class Engine10(Engine):
        device_memory_size = 900

    class Engine11(Engine):
        def create_runtime_config(self) -> Any:  # which has neither cache nor graphs
            return SimpleNamespace()

    class RtxEngine(Engine):
        def create_runtime_config(self) -> Any:
            return RuntimeConfig()

    class Runtime(Settings):
        known = ("engine_host_code_allowed",)

        def __init__(self, logger: Any) -> None:
            note("Runtime")

        def deserialize_cuda_engine(self, blob: bytes) -> Any:
            kind = {"10": Engine10, "11": Engine11, "rtx": RtxEngine}[surface]
            return kind() if note("deserialize_cuda_engine", blob) else None

    class RtxRuntime(Runtime):
        def get_engine_validity(self, blob: bytes) -> Any:
            note("get_engine_validity")
            word = faults.get("validity", "VALID")
            return trt.EngineValidity[word], "" if word == "VALID" else "another compute capability"

    trt.Runtime = RtxRuntime if surface == "rtx" else Runtime
    if surface == "rtx":
        trt.ComputeCapability = enumeration("ComputeCapability", "NONE", "CURRENT", "SM86", "SM89", "SM120")
        trt.EngineValidity = enumeration("EngineValidity", "VALID", "SUBOPTIMAL", "INVALID")
        trt.CudaGraphStrategy = enumeration("CudaGraphStrategy", "DISABLED", "WHOLE_GRAPH_CAPTURE")
        trt.DynamicShapesKernelSpecializationStrategy = enumeration("Strategy", "LAZY", "EAGER", "NONE")
    return trt


def images(n: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *PIXELS, generator=torch.Generator().manual_seed(seed))


def expected(pixels: torch.Tensor) -> torch.Tensor:
    """What a fake engine computes."""
    return pixels.flatten(1).sum(1, keepdim=True) + torch.arange(N_CLASSES)
