"""Rules on scales: value, type, shape, axis, and what Q and DQ of a pair must share."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .rule import ANY, NVIDIA, Hit, rule
from .shown import shown
from .view import DQ, HALF, Q, View, array, dims, given, integer, is_constant, per_channel

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)


@rule("a scale that is 0, negative, infinite or not a number", errors=ANY)
def bad_scale(view: View) -> Iterator[Hit]:
    """x / s has no codes to become; TensorRT's parser asks for positive scales."""
    for node in view.quantizers:
        scale = array(given(node, 1))
        if scale is not None and not (np.isfinite(scale) & (scale > 0)).all():
            worst = scale[~(np.isfinite(scale) & (scale > 0))].flat[0]
            yield Hit(
                node=node,
                reason=f"a scale is {worst:g}; scales are positive and finite",
                fix="calibrate again; give a channel that is all zeros the scale 1 (a scale below 6e-8 is 0 in float16)",
            )


@rule("a scale that is computed while the graph runs", errors=("tensorrt",), warnings=("tensorrt-rtx",))
def dynamic_scale(view: View) -> Iterator[Hit]:
    """TensorRT's documentation: the scale is a build-time constant. RTX 1.7.1 builds a floating-point product."""
    for node in view.quantizers:
        scale = given(node, 1)
        if scale is not None and not is_constant(scale):
            yield Hit(
                node=node,
                reason=f"its scale {shown(scale.name)} is computed: refused, or multiplied in floating point",
                fix="static quantization: calibrate once and store the scale as an initializer",
            )


@rule("a quantizer's scale has another type than its input", errors=("onnx",))
def scale_type(view: View) -> Iterator[Hit]:
    """ONNX before opset 23: x and y_scale share one type. ONNX Runtime refuses the graph; RTX 1.7.1 takes it."""
    if view.model.opset_imports.get("", 1) >= 23:
        return
    for node in view.of_type(Q):
        x, scale = node.inputs[0], given(node, 1)
        types = [value.dtype for value in (x, scale) if value is not None]
        if len(types) == 2 and set(types) <= set(_FLOATS) and types[0] != types[1]:
            yield Hit(
                node=node,
                reason=f"input {types[0]} and scale {types[1]} differ",
                fix=f"store the scale as {types[0]}",
            )


@rule("scale, zero point and tensor do not fit in shape", errors=ANY)
def scale_shape(view: View) -> Iterator[Hit]:
    """ONNX: per tensor a scalar, per axis as long as that axis; the zero point has the scale's shape."""
    for node in view.quantizers:
        x, scale, zero = dims(node.inputs[0]), dims(given(node, 1)), dims(given(node, 2))
        block = integer(node, "block_size", 0)
        fix = "one scale a channel of `axis`, and a zero point of the same shape"
        if scale is not None and zero is not None and scale != zero and {scale, zero} != {(), (1,)}:
            yield Hit(node=node, reason=f"scale {scale} and zero point {zero} differ in shape", fix=fix)
        elif x and scale is not None and len(scale) == 1 and scale != (1,) and not block:
            axis = integer(node, "axis", 1)
            if not -len(x) <= axis < len(x):
                yield Hit(node=node, reason=f"axis {axis} of a tensor with {len(x)} axes", fix=fix)
            elif None not in (x[axis], scale[0]) and x[axis] != scale[0]:
                yield Hit(node=node, reason=f"{scale[0]} scales for the {x[axis]} channels of axis {axis}", fix=fix)


@rule("Q and DQ of a pair disagree in scale, zero point or axis", errors=ANY)
def pair_disagrees(view: View) -> Iterator[Hit]:
    """A pair stands for rounding to a grid; with two grids it multiplies and shifts. Types may differ, values may not."""
    for q, dq in view.pairs:
        if _unpacks(q):
            continue
        (s, t), (z, u) = ((array(given(q, i)), array(given(dq, i))) for i in (1, 2))
        fix = "the same constants for both (a scale that float32 and float16 both hold exactly)"
        if s is not None and t is not None and (s.size != t.size or not np.array_equal(s.ravel(), t.ravel())):
            if s.size and t.size and s.flat[0]:
                reason = f"its scale is {t.flat[0] / s.flat[0]:.7g} times that of the quantizer before it"
            else:
                reason = "its scale is not that of the quantizer before it"
            yield Hit(node=dq, reason=reason, fix=fix)
        elif _differ(z, u):
            yield Hit(node=dq, reason="its zero point is not that of the quantizer before it", fix=fix)
        elif per_channel(q) and per_channel(dq) and integer(q, "axis", 1) != integer(dq, "axis", 1):
            axes = f"axis {integer(dq, 'axis', 1)} here, axis {integer(q, 'axis', 1)}"
            yield Hit(node=dq, reason=f"{axes} at the quantizer before it", fix=fix)


def _unpacks(q: ir.Node) -> bool:
    """Does it quantize a dequantized constant? That is a weight held in fewer bits, which only then gets its scale."""
    source = None if q.inputs[0] is None else q.inputs[0].producer()
    return source is not None and source.op_type == DQ and is_constant(source.inputs[0])


def _differ(z: NDArray[np.float64] | None, u: NDArray[np.float64] | None) -> bool:
    """Two zero points; one left out is 0."""
    z, u = (np.zeros(1) if x is None else x.ravel() for x in (z, u))
    return bool((z != u).any()) if z.size == u.size or 1 in (z.size, u.size) else True


@rule("an activation scale per channel, token or block", errors=("onnx",), warnings=NVIDIA)
def per_channel_activation(view: View) -> Iterator[Hit]:
    """A scale that varies along the summed axis cannot leave the sum. RTX 1.7.1 multiplies floats; ONNX Runtime 1.31 fuses
    it all the same and fails when the session runs ("MatMulIntegerToFloat")."""
    for node in view.activation_quantizers:
        if per_channel(node):
            yield Hit(
                node=node,
                reason=f"scales of shape {dims(given(node, 1))} on an activation: in floating point, or not at all",
                fix="one scale a tensor; fold differences between channels into the LayerNorm before it",
            )


@rule("float16 scales: ONNX Runtime does not fuse them", warnings=("onnx",))
def half_scale(view: View) -> Iterator[Hit]:
    """ONNX Runtime 1.31 on CPU: Q/DQ with float16 scales stay as they are, with Casts around every operator."""
    for pair in view.pairs:
        halves = [node for node in pair if (scale := given(node, 1)) is not None and scale.dtype == HALF]
        for node in halves[:1]:
            yield Hit(
                node=node,
                reason="a float16 scale: the product behind it runs in floating point",
                fix="a float32 graph for ONNX Runtime on CPU; float16 is for TensorRT",
            )


@rule("scale of input × scale of weight is below float16's normal range", warnings=NVIDIA)
def subnormal_scale(view: View) -> Iterator[Hit]:
    """RTX 1.7.1: with a scale per channel the kernel behind the product multiplies by float16(s_x·s_w), up to 0.34 %
    off where that is subnormal; the raw sums it reads are float16 as well and end at 65504."""
    for product in view.products:
        weight, data = product.weight, product.data
        if product.node.op_type == "Conv" or weight is None or weight.dequantize is None or data.dequantize is None:
            continue
        scales, other = given(weight.dequantize, 1), array(given(data.dequantize, 1))
        values = array(scales)
        if (
            scales is None
            or scales.dtype != HALF
            or values is None
            or other is None
            or not (values.size and other.size)
            or not per_channel(weight.dequantize)
        ):
            continue
        smallest = float(values.min() * other.min())
        if smallest < _SMALLEST_NORMAL:
            yield Hit(
                node=product.node,
                reason=f"the smallest product of its scales is {smallest:.2g}, float16 is normal from 6.1e-05",
                fix="one power-of-two weight scale in DequantizeLinear, the ratios in a Mul behind the product",
            )


@rule("a weight's scales lie along an axis that is summed", errors=("onnx",), warnings=NVIDIA)
def weight_axis(view: View) -> Iterator[Hit]:
    """Only scales of the output channel leave the sum: last axis of MatMul's second operand, axis 0 of
    Conv's. RTX 1.7.1 multiplies floats; ONNX Runtime 1.31 takes them for scales of the output, without a message."""
    for product in view.products:
        weight = product.weight
        if weight is None or (node := weight.dequantize) is None or not per_channel(node):
            continue
        if integer(node, "block_size", 0) or len(shape := dims(node.inputs[0]) or ()) < 2:
            continue
        direct = product.node.inputs[1 if weight is product.b else 0]
        used = direct.producer() if direct is not None else None
        perm = list(range(len(shape)))
        if used is not node:  # a Transpose may stand between, nothing else is judged
            if used is None or used.op_type != "Transpose" or used.inputs[0] is not node.outputs[0]:
                continue
            given_perm = used.attributes.get("perm")
            perm = list(given_perm.as_ints()) if given_perm is not None else perm[::-1]
        axis, wanted = (
            integer(node, "axis", 1) % len(shape),
            perm[_output_axis(product.node, weight is product.b, len(perm))],
        )
        if axis != wanted:
            yield Hit(
                node=node,
                reason=f"scales along axis {axis} of {shape}; {product.node.op_type} keeps axis {wanted}",
                fix=f"quantize the weight along axis {wanted}",
            )


def _output_axis(node: ir.Node, second: bool, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        transposed = integer(node, "transB" if second else "transA", 0)
        return int(bool(transposed) != second)
    return rank - 1 if second else rank - 2


RULES = (
    bad_scale,
    dynamic_scale,
    scale_type,
    scale_shape,
    pair_disagrees,
    per_channel_activation,
    half_scale,
    subnormal_scale,
    weight_axis,
)
