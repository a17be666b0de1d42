"""Markers to Q/DQ: each target's way of writing y = Ŵ x̂ + b so that its integer kernel is found.

Letters:  x (…, k) input;  s its scale, qmin … qmax its grid;  q (k, n) integer weight;  s_w (n,) its scales
          s₀ a power of two ≥ max s_w, r = s_w / s₀ (n,)

    channel:  Q(s) → Clip → DQ(s) → MatMul(DQ(q, s_w, axis 1)) → Add(b)                        ONNX Runtime
    scalar:   Clip → Q(s) → DQ(s) → MatMul(DQ(q, s₀)) → Mul(r) → Add(b)                        TensorRT
How x is quantized is `container`'s to know, the form of the weights `weights`', convolutions `convolution`'s, q, k, v and
the softmax `operands`'.
"""

import numpy as np
import onnx_ir as ir

from erq_export.contract.manifest import LoweredOperand, LoweredSite
from erq_export.contract.quantized import CONV_MARKER, LAYER_MARKERS, MARKER_DOMAIN
from erq_export.contract.spec import Pack
from erq_export.contract.targets import Target

from . import convolution
from .attention import follows_int8_attention
from .container import Carried, Narrowing, carry
from .graph import Editor, marker_nodes, path_of, value_of
from .operands import lower_operands
from .packing import packable, unpacked
from .weights import WeightScales


def lower(model: ir.Model, target: Target, *, pack: Pack = "int8") -> tuple[list[LoweredSite], list[LoweredOperand]]:
    """Replace every marker of the graph in place; returns one record a layer, one an operand of attention, in graph order.

    pack: "int4" puts Linear weights of at most 4 bits into INT4 initializers (see `packing`).
    EngineError where a grid does not fit the target's container (calibration for that target prevents it).
    """
    editor = Editor(model)
    markers = marker_nodes(model)
    for constant in {v for marker in markers for v in marker.inputs if v is not None and v.is_initializer()}:
        constant.name = f"marker.{constant.name}"  # the exporter's names are the ones that we want to give
    sites = [_lower(editor, marker, target, pack) for marker in markers if marker.op_type in LAYER_MARKERS]
    operands = lower_operands(editor, target)
    model.opset_imports.pop(MARKER_DOMAIN, None)
    return sites, operands


def _lower(editor: Editor, marker: ir.Node, target: Target, pack: Pack) -> LoweredSite:
    path = path_of(marker)
    x, *constants = (v for v in marker.inputs if v is not None)
    q, s_w, bias, s = (value_of(v) for v in constants)
    qmin, qmax, w_bits, a_bits = (marker.attributes[a].as_int() for a in ("qmin", "qmax", "w_bits", "a_bits"))
    out, source = marker.outputs[0], x
    if x.shape is None or x.dtype is None:
        raise ValueError(f"{path}: the trace gives its input no type or shape")
    scales = WeightScales.of(s_w, target, path)
    flat = len(x.shape) == 2 and target.weight_form == "channel"
    if flat:  # ONNX Runtime rewrites a 2-D MatMul + Add to Gemm, which it does not run in integers with a float bias
        axes = editor.constant("axes_1", np.array([1], np.int64))
        lifted = ir.Shape([x.shape[0], 1, x.shape[1]])
        x = editor.node(marker, "Unsqueeze", [x, axes], f"{path}/Unsqueeze", dtype=x.dtype, shape=lifted)

    narrowing: Narrowing = "codes" if target.container == "uint8" or follows_int8_attention(marker) else "float"
    act = carry(editor, marker, x, s, qmin, qmax, path=path, target=target, narrowing=narrowing)
    convolved = marker.op_type == CONV_MARKER
    int4 = not convolved and pack == "int4" and packable(q.shape[0], w_bits)
    if convolved:
        weight_q = convolution.spread(q, marker, target)  # (n, c, r, s)
        weight = editor.constant(f"{path}.weight_q", weight_q)
        y, product = convolution.product(editor, marker, act, weight, scales, target, path)
        bias = convolution.one_a_channel(bias)
    else:
        weight_q = np.ascontiguousarray(q.T)  # (k, n)
        weight = (
            unpacked(editor, marker, path, weight_q, target) if int4 else editor.constant(f"{path}.weight_q", weight_q)
        )
        y, product = _product(editor, marker, act, weight, scales, path)
    b = editor.constant(f"{path}.bias", bias.astype(scales.carrier.numpy()))
    y = editor.node(marker, "Add", [y, b], f"{path}/Add", dtype=scales.carrier, shape=y.shape)
    if flat:
        axes = editor.constant("axes_1", np.array([1], np.int64))
        y = editor.node(marker, "Squeeze", [y, axes], f"{path}/Squeeze", dtype=scales.carrier, shape=out.shape)
    editor.replace(marker, y)
    if (maker := product.producer()) is None:
        raise ValueError(f"{path}: nothing makes its product")
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
        gemm=str(maker.name),
    )


def _product(
    editor: Editor, marker: ir.Node, act: Carried, weight: ir.Value, scales: WeightScales, path: str
) -> tuple[ir.Value, ir.Value]:
    """(Ŵ x̂ in the carrier's type, the product of the node that multiplies)."""
    w_hat, name = scales.dequantized(editor, marker, weight, path, axis=1), f"{path}/MatMul"
    if act.x_hat.shape is None or w_hat.shape is None:
        raise ValueError(f"{path}: its product has no shape")
    shape = ir.Shape([*act.x_hat.shape[:-1], w_hat.shape[1]])
    y = editor.node(marker, "MatMul", [act.x_hat, w_hat], name, dtype=scales.carrier, shape=shape)
    return scales.behind(editor, marker, y, path), y
