"""The integers in the file are the bundle's, and nothing of the float weights is left beside them.

Letters:  W (n, k) a layer's weight;  the file holds it as (k, n), that of a convolution as (n, c, r, s)
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from erq_export.contract.kernel import MIDDLE
from erq_export.contract.manifest import LoweredSite
from erq_export.contract.parity import WeightParity
from erq_export.contract.quantized import QuantizedConv, QuantizedLayer

from .pieces import FLOATS, array_of

# Two unrelated tensors of one size are at a relative distance of 1 or more, a weight and the same weight rounded to
# 4 bits at about 0.1: so the float weight is found too, not only its dequantized copy.
COPY = 0.5
INTEGERS = (ir.DataType.INT8, ir.DataType.INT4)


def check_weights(
    graph: ir.Graph, claimed: Mapping[str, LoweredSite], layers: Mapping[str, QuantizedLayer]
) -> WeightParity:
    """Compare every claimed initializer with the bundle's layer; search the float ones for copies of a weight."""
    held = {path: graph.initializers.get(claimed[path].weight) for path in layers if path in claimed}
    found = {path: value for path, value in held.items() if value is not None}
    different = {path: _different(value, layers[path]) for path, value in found.items()}
    floats = {name: array_of(value) for name, value in graph.initializers.items() if value.dtype in FLOATS}
    return WeightParity(
        n_layers=len(layers),
        n_integers=sum(layer.weight_q.numel() for layer in layers.values()),
        different={path: n for path, n in different.items() if n},
        missing=tuple(path for path in layers if path not in found),
        float_copies={
            name: path
            for name, array in floats.items()
            for path, layer in layers.items()
            if array.size == layer.weight_q.numel() and _is_copy(array, layer.weight.numpy())
        },
    )


def _different(value: ir.Value, layer: QuantizedLayer) -> int:
    q = layer.weight_q
    want = layer.kernel.spread(q).numpy() if isinstance(layer, QuantizedConv) else q.numpy().T  # (n, c, r, s) or (k, n)
    unsigned = isinstance(layer, QuantizedConv) and value.dtype == ir.DataType.UINT8
    if not (unsigned or value.dtype in INTEGERS) or (file := array_of(value)).shape != want.shape:
        return int(want.size)
    return int(np.count_nonzero(file.astype(np.int16) - (MIDDLE if unsigned else 0) != want))


def _is_copy(tensor: NDArray[np.generic], W: NDArray[np.float32]) -> bool:
    """Is ‖T − W‖ ≤ ‖W‖/2 for the tensor T read as (n, k) or as (k, n)?"""
    flat = tensor.astype(np.float32).reshape(-1)
    return any(np.linalg.norm(flat - w.reshape(-1)) <= COPY * np.linalg.norm(w) for w in (W, W.T) if w.any())
