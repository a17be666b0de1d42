"""ONNX Runtime: sessions with exact sums, and the options that make them so."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erq_export.backends.machine import sums_may_saturate
from erq_export.contract.errors import DataError, MachineError

CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider", *CPU)  # what a provider lacks runs on the next
TENSORRT = ("TensorrtExecutionProvider", *CUDA)
DEVICE_OF = {CUDA[0]: "cuda", TENSORRT[0]: "cuda"}  # of a session's first provider; the CPU otherwise


# Int8 quantizers become uint8 ones there, and carry their old output type where a Reshape or Transpose follows, as in
# int8 attention: the session then fails (microsoft/onnxruntime#25526). A graph of uint8 quantizers does not notice.
DISABLED = ("QDQS8ToU8Transformer",)


# Without VNNI an x64 CPU adds pairs of uint8 · int8 products in 16 bits, which saturate where weights exceed 6 bits. With
# this set such weights become uint8, and sums are exact (microsoft/onnxruntime#12088). ONNX Runtime does so with
# AVX512-VNNI as well, where nothing saturates and w8a8 then takes 1.8 times as long: there it stays unset.
EXACT_SUMS = "session.x64quantprecision"


ERRORS_ONLY = 3  # ONNX Runtime's log level; its warnings at load speak of its own graph optimizer


def onnxruntime() -> Any:
    """The package, imported when it is first needed."""
    try:
        import onnxruntime as package
    except ImportError as e:
        raise MachineError(f"onnxruntime cannot be imported: {e}", fix="pip install onnxruntime-gpu") from e
    return package


def session(
    model: Path | bytes,
    *,
    threads: int | None = None,
    optimize: bool = True,
    providers: Sequence[str] = CPU,
    optimized_copy: Path | None = None,
) -> Any:
    """An InferenceSession of a file or a serialized model; the graph it really runs is written to `optimized_copy`.

    DataError for a graph that ONNX Runtime refuses, MachineError without package or provider.
    """
    ort = onnxruntime()
    if absent := [p for p in providers if p not in ort.get_available_providers()]:
        raise MachineError(
            f"this onnxruntime has no {', '.join(absent)}", fix=f"it has {', '.join(ort.get_available_providers())}"
        )
    options = session_options(threads=threads, optimize=optimize)
    if optimized_copy is not None:
        options.optimized_model_filepath = str(optimized_copy)
        key = "session.optimized_model_external_initializers"  # beside the file: protobuf ends at 2 GiB
        options.add_session_config_entry(f"{key}_file_name", f"{optimized_copy.name}.data")
        options.add_session_config_entry(f"{key}_min_size_in_bytes", "1024")
    source = model if isinstance(model, bytes) else str(model)
    try:
        made = ort.InferenceSession(source, options, providers=_set(providers), disabled_optimizers=list(DISABLED))
    except Exception as e:  # its exception classes share no base but this one
        what = "a piece of the graph" if isinstance(model, bytes) else str(model)
        raise DataError(
            f"ONNX Runtime refuses {what}: {str(e).splitlines()[0][:300]}",
            fix="export again; a graph of erq-export loads as it was written",
        ) from e
    if made.get_providers()[0] != providers[0]:  # it falls back to the CPU with no more than a warning
        raise MachineError(f"onnxruntime cannot start {providers[0]} here", fix=f"it can start {CPU[0]}")
    return made


def _set(providers: Sequence[str]) -> list[Any]:
    """The providers with their options: those of a GPU work on torch's stream, so that torch's events time them."""
    if not any(provider in DEVICE_OF for provider in providers):
        return list(providers)
    stream = {"user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}
    return [(provider, stream) if provider in DEVICE_OF else provider for provider in providers]


def session_options(*, threads: int | None = None, optimize: bool = True) -> Any:
    """Exact sums on any CPU, and threads that stop spinning when a run ends, so that sessions timed in turns do not
    disturb each other."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads or 0
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if sums_may_saturate():
        options.add_session_config_entry(EXACT_SUMS, "1")
    return options


def run(session: Any, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All outputs by name; types and shapes as the graph has them. DataError where the graph does not take what it is fed."""
    names = [o.name for o in session.get_outputs()]
    try:
        arrays = session.run(names, {name: x.cpu().contiguous().numpy() for name, x in feeds.items()})
    except Exception as e:  # as above: no common base
        raise DataError(
            f"ONNX Runtime cannot run the graph: {str(e).splitlines()[0][:300]}",
            fix="export again; a graph of erq-export takes the images of its model",
        ) from e
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


def run_one(session: Any, x: Tensor) -> Tensor:
    """The only output for the only input."""
    (found,) = run_all(session, x)
    return found


def run_all(session: Any, x: Tensor) -> list[Tensor]:
    """Every output for the only input, in the graph's order."""
    (given,) = session.get_inputs()
    return list(run(session, {given.name: x}).values())


def sides(session: Any) -> tuple[int, int]:
    """How many inputs and outputs it has."""
    return len(session.get_inputs()), len(session.get_outputs())


def input_device(device: torch.device) -> tuple[str, int]:
    """As io binding names it."""
    return device.type, device.index or 0


def bound(session: Any, x: Tensor, device: tuple[str, int]) -> Callable[[], None]:
    """A call that runs the session on `x`, copied to the device now, into buffers there; on a GPU it is only enqueued.

    The first run, which finds the outputs' shapes, happens here. DataError where the graph does not take what it is fed.
    """
    ort, results = onnxruntime(), run_all(session, x)
    (given,), binding = session.get_inputs(), session.io_binding()
    binding.bind_ortvalue_input(given.name, ort.OrtValue.ortvalue_from_numpy(x.cpu().contiguous().numpy(), *device))
    for found, result in zip(session.get_outputs(), results, strict=True):
        binding.bind_ortvalue_output(found.name, ort.OrtValue.ortvalue_from_numpy(result.numpy(), *device))
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return lambda: session.run_with_iobinding(binding, options)
