"""Four-bit weights in the file: INT4 initializers, two codes a byte, made int8 again before anything is multiplied.

Letters:  q (k, n) integer weight of a layer, codes in [−8, 7];  s_w (n,) or s₀ () its scale in the graph

    cast:        q (INT4) → Cast(int8) → DQ(s_w) → MatMul           ONNX Runtime folds the Cast while it loads the file
    requantize:  q (INT4) → DQ(1) → Q(1) → DQ(s₀) → MatMul          TensorRT lets INT4 into a DequantizeLinear only

Both are exact: integers up to 8 and a step of 1 are exact in every type on the way. INT4 straight into the layer's own DQ
would save nodes and lose the product: ONNX Runtime then multiplies in float; RTX refuses s₀ as a scalar, and as a vector
applies it behind the product, whose float16 output then holds the raw sums (measured, docs/packing.md).
"""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from erq_export.contract.bits import PACKED_BITS
from erq_export.contract.errors import EngineError
from erq_export.contract.targets import Target

from .graph import Editor

LOWEST, HIGHEST = -8, 7


def packable(n: int, w_bits: int) -> bool:
    """May a layer of n outputs lie in the file as INT4? TensorRT's parser wants an even last dimension."""
    return w_bits <= PACKED_BITS and n % 2 == 0


def unpacked(editor: Editor, before: ir.Node, path: str, q: NDArray[Any], target: Target) -> ir.Value:
    """The int8 value of codes q (k, n) that the file holds as the INT4 initializer `<path>.weight_q`.

    EngineError where codes do not fit; calibration for the packing prevents it.
    """
    if q.min() < LOWEST or q.max() > HIGHEST:
        raise EngineError(
            f"{path}: weight codes {q.min()} … {q.max()} do not fit INT4, which holds {LOWEST} … {HIGHEST}",
            fix="calibrate for it: erq-export MODEL --pack int4",
        )
    shape = ir.Shape(q.shape)
    packed = editor.constant(f"{path}.weight_q", q.astype(ml_dtypes.int4))
    if target.int4_unpack == "cast":
        return editor.node(
            before, "Cast", [packed], f"{path}/weight/Unpack",
            dtype=ir.DataType.INT8, shape=shape, to=int(ir.DataType.INT8),
        )  # fmt: skip
    ones, zeros, one, zero = (editor.constant(f"{path}.{name}", array) for name, array in _steps(q.shape[1]).items())
    half = editor.node(
        before, "DequantizeLinear", [packed, ones, zeros], f"{path}/weight/Unpack",
        dtype=ir.DataType.FLOAT16, shape=shape, axis=1,
    )  # fmt: skip
    return editor.node(
        before, "QuantizeLinear", [half, one, zero], f"{path}/weight/Quantize", dtype=ir.DataType.INT8, shape=shape
    )


def _steps(n: int) -> dict[str, NDArray[Any]]:
    """The constants that requantizing takes. A scalar step of 1 is no choice: RTX then retypes the quantizer to INT4."""
    return {
        "unpack_scale": np.ones(n, np.float16),
        "unpack_zero_point": np.zeros(n, ml_dtypes.int4),
        "pack_scale": np.ones((), np.float16),
        "pack_zero_point": np.zeros((), np.int8),
    }


def packed_bytes(k: int, n: int, target: Target) -> int:
    """What a packed layer's codes take in the file, with the constants that unpack them."""
    steps = 0 if target.int4_unpack == "cast" else 2 * n + n // 2 + 2 + 1
    return k * n // 2 + steps
