"""Markers to Q/DQ: each target's way of writing y = Ŵ x̂ + b so that its integer kernel is found.

Letters:  x (…, k) input;  s its scale, qmin … qmax its grid;  q (k, n) integer weight;  s_w (n,) its scales
          s₀ a power of two ≥ max s_w, r = s_w / s₀ (n,)

    channel:  Q(s) → Clip → DQ(s) → MatMul(DQ(q, s_w, axis 1)) → Add(b)                        ONNX Runtime
    scalar:   Clip → Q(s) → DQ(s) → MatMul(DQ(q, s₀)) → Mul(r) → Add(b)                        TensorRT
How x is quantized is `container`'s to know, q, k, v and the softmax `operands`' (form of the weights:
docs/backends.md, "Weight forms").
"""

import numpy as np
import onnx_ir as ir
import torch

from erq_export.contract.errors import EngineError
from erq_export.contract.formats.affine import common_power
from erq_export.contract.manifest import LoweredOperand, LoweredSite
from erq_export.contract.quantized import MARKER, MARKER_DOMAIN
from erq_export.contract.spec import Pack
from erq_export.contract.targets import Target

from .attention import follows_int8_attention
from .container import Narrowing, carrier_of, carry
from .graph import Editor, marker_nodes, path_of, value_of
from .operands import lower_operands
from .packing import packable, unpacked


def lower(model: ir.Model, target: Target, *, pack: Pack = "int8") -> tuple[list[LoweredSite], list[LoweredOperand]]:
    """Replace every marker of the graph in place; returns one record a layer, one an operand of attention, in graph order.

    pack: "int4" puts weights of at most 4 bits into INT4 initializers (see `packing`).
    EngineError where a grid does not fit the target's container (calibration for that target prevents it).
    """
    editor = Editor(model)
    markers = marker_nodes(model)
    for constant in {v for marker in markers for v in marker.inputs if v is not None and v.is_initializer()}:
        constant.name = f"marker.{constant.name}"  # the exporter's names are the ones that we want to give
    sites = [_lower(editor, marker, target, pack) for marker in markers if marker.op_type == MARKER]
    operands = lower_operands(editor, target)
    model.opset_imports.pop(MARKER_DOMAIN, None)
    return sites, operands


def _lower(editor: Editor, marker: ir.Node, target: Target, pack: Pack) -> LoweredSite:
    path = path_of(marker)
    x, *constants = (v for v in marker.inputs if v is not None)
    q, s_w, bias, s = (value_of(v) for v in constants)
    qmin, qmax, w_bits, a_bits = (marker.attributes[a].as_int() for a in ("qmin", "qmax", "w_bits", "a_bits"))
    out = marker.outputs[0]
    carrier = carrier_of(target)
    fp = carrier.numpy()
    source = x
    if x.shape is None or x.dtype is None:
        raise ValueError(f"{path}: the trace gives its input no type or shape")
    flat = len(x.shape) == 2 and target.weight_form == "channel"
    if flat:  # ONNX Runtime rewrites a 2-D MatMul + Add to Gemm, which it does not run in integers with a float bias
        axes = editor.constant("axes_1", np.array([1], np.int64))
        lifted = ir.Shape([x.shape[0], 1, x.shape[1]])
        x = editor.node(marker, "Unsqueeze", [x, axes], f"{path}/Unsqueeze", dtype=x.dtype, shape=lifted)

    narrowing: Narrowing = "codes" if target.container == "uint8" or follows_int8_attention(marker) else "float"
    act = carry(editor, marker, x, s, qmin, qmax, path=path, target=target, narrowing=narrowing)
    shape = ir.Shape([*(x.shape or ())[:-1], q.shape[0]])
    weight_q = np.ascontiguousarray(q.T)  # (k, n)
    int4 = pack == "int4" and packable(q.shape[0], w_bits)
    weight = unpacked(editor, marker, path, weight_q, target) if int4 else editor.constant(f"{path}.weight_q", weight_q)
    if target.weight_form == "channel":
        ratio, scale, axis = None, s_w.astype(fp), {"axis": 1}
    else:
        s0 = common_power(torch.from_numpy(np.array(s_w))).numpy()
        ratio, scale, axis = (s_w / s0).astype(fp), s0.astype(fp), {}
        if not np.array_equal(ratio.astype(np.float32) * s0, s_w):
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
    y = editor.node(marker, "MatMul", [act.x_hat, w_hat], f"{path}/MatMul", dtype=carrier, shape=shape)
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
        weight_container="int4" if int4 else "int8",
        container=target.integers,
        zero_point=act.zero_point,
        qmin=qmin,
        qmax=qmax,
        input=str(source.name),
        codes=str(act.codes.name),
        weight=f"{path}.weight_q",
        output=str(y.name),
        gemm=f"{path}/MatMul",
    )
