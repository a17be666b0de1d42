"""How an activation is carried in integers: (Clip →) quantizer → (Clip →) dequantizer in a target's 8-bit container.

Letters:  x (…) float;  s its scale, qmin … qmax its grid;  x̂ = s · clamp(round(x / s), qmin, qmax)

    "float":  Clip(s·qmin, s·qmax) → Q(s) → DQ(s)
    "codes":  Q(s) → Clip(qmin, qmax) → DQ(s)      of uint8: ONNX Runtime clips bytes, and moves the quantizer up;  of int8:
                                                   behind int8 attention, whose TensorRT kernel ends in the quantizer
    "none":   Q(s) → DQ(s)                         where no x can leave the grid
A Clip stands only where the designed grid is narrower than the container
(docs/backends.md, "Containers" and "Narrowing").
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from erq_export.contract.errors import EngineError
from erq_export.contract.targets import Target

from .graph import Editor

CONTAINERS = {"int8": (np.int8, -128, 127), "uint8": (np.uint8, 0, 255)}
CODES = {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}
Narrowing = Literal["float", "codes", "none"]


@dataclass(frozen=True, kw_only=True)
class Carried:
    """The integers, x̂ in the carrier's type, and scale and zero point: codes less `zero_point` are on the grid."""

    codes: ir.Value
    x_hat: ir.Value
    scale: NDArray[np.generic]
    zero_point: int


def carrier_of(target: Target) -> ir.DataType:
    """The type of everything that is not quantized."""
    return ir.DataType.FLOAT16 if target.carrier == "float16" else ir.DataType.FLOAT


def carry(
    editor: Editor,
    before: ir.Node,
    x: ir.Value,
    s: NDArray[np.generic],
    qmin: int,
    qmax: int,
    *,
    path: str,
    target: Target,
    narrowing: Narrowing = "float",
) -> Carried:
    """Write x on the grid s·[qmin, qmax] before a node. EngineError where the target cannot hold grid or scale.

    The quantizer computes in x's own type (float32 behind a LayerNorm), the dequantizer yields the carrier's.
    """
    carrier, fix = carrier_of(target), f"calibrate for it: erq-export MODEL --to {target.name}"
    dtype, lowest, highest = CONTAINERS[target.container]
    zero_point = -qmin if target.container == "uint8" else 0
    first, last = qmin + zero_point, qmax + zero_point
    if not lowest <= first <= last <= highest:
        problem = f"{path}: codes {first} … {last} do not fit {target.container} on target {target.name!r}"
        raise EngineError(problem, fix=fix)
    if s.astype(carrier.numpy()) != s:
        problem = f"{path}: the bundle's scales are not exact in {target.carrier}, which target {target.name!r} needs"
        raise EngineError(problem, fix=fix)
    if (first, last) == (lowest, highest):
        narrowing = "none"
    fp = (x.dtype or carrier).numpy()
    if narrowing == "float":
        lo, hi = (editor.constant(f"{path}.act_{n}", np.asarray(q * s, fp)) for n, q in (("lo", qmin), ("hi", qmax)))
        x = editor.node(before, "Clip", [x, lo, hi], f"{path}/Clip", dtype=x.dtype or carrier, shape=x.shape)
    zero = editor.constant(f"{path}.act_zero_point", np.asarray(zero_point, dtype))
    scale = editor.constant(f"{path}.act_scale_q", np.asarray(s, fp))
    kind = CODES[target.container]
    codes = editor.node(before, "QuantizeLinear", [x, scale, zero], f"{path}/Quantize", dtype=kind, shape=x.shape)
    if narrowing == "codes":
        lo, hi = (editor.constant(f"{path}.act_{n}", np.asarray(c, dtype)) for n, c in (("lo", first), ("hi", last)))
        codes = editor.node(before, "Clip", [codes, lo, hi], f"{path}/Clip", dtype=kind, shape=x.shape)
    scale = editor.constant(f"{path}.act_scale_dq", np.asarray(s, carrier.numpy()))
    x_hat = editor.node(
        before, "DequantizeLinear", [codes, scale, zero], f"{path}/Dequantize", dtype=carrier, shape=x.shape
    )
    return Carried(codes=codes, x_hat=x_hat, scale=s, zero_point=zero_point)
