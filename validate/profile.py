"""Where ONNX Runtime spends its time in a graph: its profiler's kernel times, summed by what the kernels do."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor

from erq_export.backends.onnxruntime import CPU, DISABLED, onnxruntime, session_options

INTEGER = ("MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulInteger", "QGemm", "QLinearConv")
FLOAT = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv")
GROUPS = {
    "quantize": ("QuantizeLinear", "DequantizeLinear", "Clip"),
    "LayerNorm": ("LayerNormalization", "SkipLayerNormalization"),
    "Softmax": ("Softmax", "QLinearSoftmax"),
    "GELU": ("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Erf"),
    "movement": (
        *("Transpose", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "Concat", "Gather", "Expand", "Pad"),
        *("Flatten", "QLinearConcat"),
    ),
    "elementwise": ("Add", "Mul", "Sub", "Div", "QLinearAdd", "QLinearMul"),
}
WARM_UP, RUNS = 2, 12


def group_of(op: str, shapes: list[list[int]]) -> str:
    """`shapes` of the inputs: an attention's product has two with three axes or more; packed weights are not listed."""
    for kind, ops in (("integer", INTEGER), ("float", FLOAT)):
        if op in ops:
            attention = "Conv" not in op and sum(len(shape) > 2 for shape in shapes) > 1
            return f"{kind} attention" if attention else f"{kind} GEMM"
    return next((group for group, ops in GROUPS.items() if op in ops), "other")


def profile(graph: Path, pixels: Tensor, *, threads: int) -> dict[str, Any]:
    """Milliseconds by group and by operator: for each kernel the least of its runs: a busy machine adds to the others."""
    options = session_options(threads=threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime().InferenceSession(
            str(graph), options, providers=list(CPU), disabled_optimizers=list(DISABLED)
        )
        for _ in range(WARM_UP + RUNS):
            session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels: dict[str, list[float]] = defaultdict(list)
    what: dict[str, tuple[str, str]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            shapes = [shape for of in event["args"]["input_type_shape"] for shape in of.values()]
            op = event["args"]["op_name"]
            kernels[event["name"]].append(event["dur"] / 1e3)
            what[event["name"]] = (op, group_of(op, shapes))
    by_op: dict[str, float] = defaultdict(float)
    by_group: dict[str, float] = defaultdict(float)
    for name, times in kernels.items():
        op, group = what[name]
        spent = min(times[WARM_UP:] or times)
        by_op[op] += spent
        by_group[group] += spent
    return {"by_group_ms": _largest_first(by_group), "by_operator_ms": _largest_first(by_op)}


def _largest_first(times: dict[str, float]) -> dict[str, float]:
    return dict(sorted(times.items(), key=lambda item: -item[1]))
