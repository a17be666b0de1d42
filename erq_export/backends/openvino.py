"""OpenVINO on the CPU: a graph compiled for it, and in which number format it runs every product."""

from collections import Counter
from pathlib import Path
from typing import Any

from erq_export.contract.errors import DataError, MachineError

INSTALL = "pip install 'erq-export[openvino]'"
PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention", "MHA")  # types in its runtime model


def openvino() -> Any:
    """The package, imported when it is first needed."""
    try:
        import openvino as package
    except ImportError as e:
        raise MachineError(f"openvino cannot be imported: {e}", fix=INSTALL) from e
    return package


def compiled(path: Path, *, threads: int | None = None) -> Any:
    """The graph compiled for the CPU, tuned for the time of one batch, in float32 wherever it is not quantized: on CPUs
    with bfloat16 OpenVINO would round activations to it, ONNX Runtime does not. DataError where it refuses the graph."""
    ov = openvino()
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    core = ov.Core()
    try:
        return core.compile_model(core.read_model(str(path)), "CPU", options)
    except RuntimeError as e:  # what all its errors are
        raise DataError(f"OpenVINO refuses {path}: {_line(e)}", fix="leave --with openvino out") from e


def products(compiled: Any) -> dict[str, int]:
    """How many products of the compiled graph multiply in each number format, as its runtime model says: "u8", "f32" …

    Convolutions, layers and the two products of each attention, where they are not fused.
    """
    kinds: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        said = node.get_rt_info()
        if str(_plain(said, "layerType")) in PRODUCTS:
            kinds[str(_plain(said, "runtimePrecision"))] += 1
    return dict(kinds.most_common())


def _plain(said: Any, key: str) -> Any:
    if key not in said:
        return ""
    return getattr(said[key], "value", said[key])


def _line(e: Exception) -> str:
    lines = [line for line in str(e).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(e).__name__
