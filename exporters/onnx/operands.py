"""Operand markers to Q/DQ: how q, k, v and the softmax of int8 attention are written for each target.

q, k and v stand as (B, T, h·d), before they are cut into heads: there TensorRT fuses the whole attention, and ONNX
Runtime moves the integers. The softmax never gets a Clip that it does not need, and none at all where it costs the fused
kernel: calibration then lets the grid reach 1 (docs/backends.md, "Narrowing" and "Attention").
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from erq_export.contract.errors import EngineError
from erq_export.contract.manifest import LoweredOperand
from erq_export.contract.quantized import OPERAND_MARKER
from erq_export.contract.sites import OPERANDS
from erq_export.contract.targets import Target

from .container import CONTAINERS, Narrowing, carry
from .graph import Editor, marker_nodes, path_of, value_of


def lower_operands(editor: Editor, target: Target) -> list[LoweredOperand]:
    """Replace every operand marker of the graph in place; returns one record an operand, in graph order.

    EngineError where a grid does not fit the target's container, or a softmax would need a Clip that the target lacks.
    """
    return [_lower(editor, node, target) for node in marker_nodes(editor.model) if node.op_type == OPERAND_MARKER]


def _lower(editor: Editor, marker: ir.Node, target: Target) -> LoweredOperand:
    path = path_of(marker)
    role = next(known for known in OPERANDS if known == marker.attributes["role"].as_string())
    qmin, qmax, bits = (marker.attributes[a].as_int() for a in ("qmin", "qmax", "bits"))
    x, scale = marker.inputs[:2]
    if x is None or scale is None or x.shape is None or x.dtype is None:
        raise ValueError(f"{path}: the trace gives its input no type or shape")
    s = value_of(scale)
    narrowing = softmax_narrowing(s, qmin, qmax, path=path, target=target) if role == "softmax" else "float"
    carried = carry(editor, marker, x, s, qmin, qmax, path=path, target=target, narrowing=narrowing)
    editor.replace(marker, carried.x_hat)
    return LoweredOperand(
        path=path,
        role=role,
        bits=bits,
        container=target.integers,
        zero_point=carried.zero_point,
        qmin=qmin,
        qmax=qmax,
        input=str(x.name),
        codes=str(carried.codes.name),
        output=str(carried.x_hat.name),
    )


def softmax_narrowing(s: NDArray[np.generic], qmin: int, qmax: int, *, path: str, target: Target) -> Narrowing:
    """No Clip where the codes of 0 and 1 are on the grid, for probabilities lie between; EngineError where one is
    needed and the target's fused attention would break apart on it. A grid that fills the container saturates in it."""
    of_one = float(np.rint(1 / s.astype(np.float64)))
    if qmin <= 0 and of_one <= qmax:
        return "none"
    if not target.softmax_clip and (qmin, qmax) != CONTAINERS[target.container][1:]:
        raise EngineError(
            f"{path}: the code of 1 is {of_one:.0f}, its grid ends at {qmax}, and target {target.name!r} has no integer "
            f"attention with a Clip behind the softmax",
            fix=f"calibrate for it: erq-export MODEL --to {target.name}",
        )
    return "float"
