"""Markers to Q/DQ: each target's way of writing y = Ŵ x̂ + b so that its integer kernel is found.

Letters:  x (…, k) input;  s its scale, qmin … qmax its grid;  q (k, n) integer weight;  s_w (n,) its scales
          s₀ a power of two ≥ max s_w, r = s_w / s₀ (n,)

    channel:  Clip → Q(s) → DQ(s) → MatMul(DQ(q, s_w, axis 1)) → Add(b)                        ONNX Runtime
    scalar:   Clip → Q(s) → DQ(s) → MatMul(DQ(q, s₀)) → Mul(r) → Add(b)                        TensorRT
Clip stands only where the designed grid is narrower than the container (qdq.md 3.1, 3.3; form of the weights: 6).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from erq_export.affine import common_power
from erq_export.errors import EngineError
from erq_export.quantized import MARKER, MARKER_DOMAIN
from erq_export.targets import Target

from .graph import Editor, value_of

CONTAINERS = {"int8": (np.int8, -128, 127), "uint8": (np.uint8, 0, 255)}
CODES = {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}


@dataclass(frozen=True, kw_only=True)
class LoweredSite:
    """Where a quantized layer stands in the file: tensor names, and what is designed against what carries it."""

    path: str
    w_bits: int
    a_bits: int
    container: str
    zero_point: int
    qmin: int
    qmax: int
    input: str
    codes: str
    weight: str
    output: str
    gemm: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def lower(model: ir.Model, target: Target) -> list[LoweredSite]:
    """Replace every marker of the graph in place; returns one record a layer, in graph order.

    EngineError where a grid does not fit the target's container (calibration for that target prevents it).
    """
    editor = Editor(model)
    markers = [node for node in model.graph if node.op_type == MARKER]
    for constant in {v for marker in markers for v in marker.inputs if v is not None and v.is_initializer()}:
        constant.name = f"marker.{constant.name}"  # the exporter's names are the ones that we want to give
    sites = [_lower(editor, marker, target) for marker in markers]
    model.opset_imports.pop(MARKER_DOMAIN, None)
    return sites


def _lower(editor: Editor, marker: ir.Node, target: Target) -> LoweredSite:
    path = marker.metadata_props["erq.path"]
    x, *constants = (v for v in marker.inputs if v is not None)
    q, s_w, bias, s = (value_of(v) for v in constants)
    qmin, qmax, w_bits, a_bits = (marker.attributes[a].as_int() for a in ("qmin", "qmax", "w_bits", "a_bits"))
    out = marker.outputs[0]
    carrier = ir.DataType.FLOAT16 if target.carrier == "float16" else ir.DataType.FLOAT
    fp = carrier.numpy()
    source = x
    if x.shape is None or x.dtype is None:
        raise ValueError(f"{path}: the trace gives its input no type or shape")
    flat = len(x.shape) == 2 and target.weight_form == "channel"
    if flat:  # ONNX Runtime rewrites a 2-D MatMul + Add to Gemm, which it does not run in integers with a float bias
        axes = editor.constant("axes_1", np.array([1], np.int64))
        lifted = ir.Shape([x.shape[0], 1, x.shape[1]])
        x = editor.node(marker, "Unsqueeze", [x, axes], f"{path}/Unsqueeze", dtype=x.dtype, shape=lifted)

    codes, x_hat, zero_point = _input_qdq(editor, marker, x, s, qmin, qmax, path, target, carrier)
    shape = ir.Shape([*(x.shape or ())[:-1], q.shape[0]])
    weight = editor.constant(f"{path}.weight_q", np.ascontiguousarray(q.T))  # (k, n)
    if target.weight_form == "channel":
        ratio, scale, axis = None, s_w.astype(fp), {"axis": 1}
    else:
        s0 = common_power(torch.from_numpy(np.array(s_w))).numpy()
        ratio, scale, axis = (s_w / s0).astype(fp), s0.astype(fp), {}
        if not (np.array_equal(ratio.astype(np.float32) * s0, s_w) and s.astype(fp) == s):
            raise EngineError(
                f"{path}: the bundle's scales are not exact in {target.carrier}, which target {target.name!r} needs",
                fix=f"calibrate for it: erq-export MODEL --to {target.name}",
            )
    zeros = editor.constant(f"{path}.weight_zero_point", np.zeros(scale.shape, np.int8))
    scales = editor.constant(f"{path}.weight_scale", scale)
    w_hat = editor.node(
        marker, "DequantizeLinear", [weight, scales, zeros], f"{path}/weight/Dequantize",
        dtype=carrier, shape=ir.Shape(q.T.shape), **axis,
    )  # fmt: skip
    y = editor.node(marker, "MatMul", [x_hat, w_hat], f"{path}/MatMul", dtype=carrier, shape=shape)
    if ratio is not None:
        r = editor.constant(f"{path}.weight_ratio", ratio)
        y = editor.node(marker, "Mul", [y, r], f"{path}/Mul", dtype=carrier, shape=shape)
    b = editor.constant(f"{path}.bias", bias.astype(fp))
    y = editor.node(marker, "Add", [y, b], f"{path}/Add", dtype=carrier, shape=shape)
    if flat:
        axes = editor.constant("axes_1", np.array([1], np.int64))
        y = editor.node(marker, "Squeeze", [y, axes], f"{path}/Squeeze", dtype=carrier, shape=out.shape)
    editor.replace(marker, y)
    return LoweredSite(
        path=path,
        w_bits=w_bits,
        a_bits=a_bits,
        container=target.container,
        zero_point=zero_point,
        qmin=qmin,
        qmax=qmax,
        input=str(source.name),
        codes=str(codes.name),
        weight=f"{path}.weight_q",
        output=str(y.name),
        gemm=f"{path}/MatMul",
    )


def _input_qdq(
    editor: Editor,
    marker: ir.Node,
    x: ir.Value,
    s: NDArray[np.generic],
    qmin: int,
    qmax: int,
    path: str,
    target: Target,
    carrier: ir.DataType,
) -> tuple[ir.Value, ir.Value, int]:
    """Clip → Q → DQ on the grid s·[qmin, qmax]: (codes, x̂, zero point of the container).

    The quantizer computes in x's own type (float32 behind a LayerNorm), the dequantizer yields the carrier's.
    """
    dtype, lowest, highest = CONTAINERS[target.container]
    zero_point = -qmin if target.container == "uint8" else 0
    first, last = qmin + zero_point, qmax + zero_point
    if not lowest <= first <= last <= highest:
        raise EngineError(
            f"{path}: codes {first} … {last} do not fit {target.container} on target {target.name!r}",
            fix=f"calibrate for it: erq-export MODEL --to {target.name}",
        )
    fp = (x.dtype or carrier).numpy()
    if (first, last) != (lowest, highest):
        lo, hi = (editor.constant(f"{path}.act_{n}", np.asarray(q * s, fp)) for n, q in (("lo", qmin), ("hi", qmax)))
        x = editor.node(marker, "Clip", [x, lo, hi], f"{path}/Clip", dtype=x.dtype or carrier, shape=x.shape)
    zero = editor.constant(f"{path}.act_zero_point", np.asarray(zero_point, dtype))
    scale = editor.constant(f"{path}.act_scale_q", np.asarray(s, fp))
    codes = editor.node(
        marker, "QuantizeLinear", [x, scale, zero], f"{path}/Quantize", dtype=CODES[target.container], shape=x.shape
    )
    scale = editor.constant(f"{path}.act_scale_dq", np.asarray(s, carrier.numpy()))
    x_hat = editor.node(
        marker, "DequantizeLinear", [codes, scale, zero], f"{path}/Dequantize", dtype=carrier, shape=x.shape
    )
    return codes, x_hat, zero_point
