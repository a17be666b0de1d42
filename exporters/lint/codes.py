"""Rules on integer types, zero points and integer operators: what TensorRT's parser refuses or retypes."""

from collections.abc import Iterator

import onnx_ir as ir

from .rule import ANY, NVIDIA, Hit, rule
from .view import DQ, Q, View, array, code_type, given, integer, quantize_of

_T = ir.DataType
_ACCEPTED = (
    _T.INT8,
    _T.INT4,
    _T.UINT8,
    _T.INT32,
    _T.FLOAT8E4M3FN,
    _T.FLOAT4E2M1,
)  # the middle two have rules of their own
_INTEGER_OPERATORS = (
    *("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DynamicQuantizeLinear"),
    *("QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "QLinearAdd", "QLinearMul"),
    *("QLinearSoftmax", "QAttention", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool"),
    "QLinearGlobalAveragePool",
)


@rule("QuantizeLinear without a zero point: uint8 in ONNX, int8 in TensorRT", errors=NVIDIA, warnings=("onnx",))
def missing_zero_point(view: View) -> Iterator[Hit]:
    """ONNX: QuantizeLinear defaults to uint8 with zero point 0. TensorRT's parser defaults to int8 (RTX 1.7.1)."""
    for node in view.of_type(Q):
        if given(node, 2) is None and not integer(node, "output_dtype", 0):
            yield Hit(
                node=node,
                reason="no zero point: ONNX writes uint8 codes 0 … 255, negative inputs become 0; TensorRT takes int8",
                fix="give it an explicit zero point: int8 0 for TensorRT, uint8 with its real offset for ONNX Runtime",
            )


@rule("uint8 codes: TensorRT retypes them to int8, codes 128 … 255 saturate", errors=NVIDIA)
def uint8_codes(view: View) -> Iterator[Hit]:
    """TensorRT's parser: "UINT8 zero_point … Defaulting to INT8", with a warning only (RTX 1.7.1)."""
    for node in view.quantizers:
        zero = given(node, 2)
        if zero is not None and zero.dtype == _T.UINT8:
            yield Hit(
                node=node,
                reason="uint8 codes are read as int8: 128 … 255 saturate at 127",
                fix="quantize to int8 with zero point 0 (scale = largest magnitude / 127)",
            )


@rule("a zero point that is not 0", errors=NVIDIA)
def nonzero_zero_point(view: View) -> Iterator[Hit]:
    """TensorRT's parser: "Non-zero zero point is not supported" (RTX 1.7.1)."""
    for node in view.quantizers:
        zero = array(given(node, 2))
        if zero is not None and zero.any():
            largest = zero.flat[abs(zero).argmax()]
            yield Hit(
                node=node,
                reason=f"zero point {largest:.15g}: the parser accepts 0 alone",
                fix="symmetric quantization; below 8 bits, shift the grid: codes minus the zero point fit int8",
            )


@rule("a quantized type that TensorRT does not have (int16, uint16, uint4, …)", errors=NVIDIA)
def unsupported_codes(view: View) -> Iterator[Hit]:
    """TensorRT's operator documentation lists int8, int4, fp8 and fp4; int16 and uint4 are parse errors (RTX 1.7.1)."""
    for node in view.quantizers:
        codes = code_type(node)
        if codes is not None and codes not in _ACCEPTED:
            yield Hit(
                node=node,
                reason=f"{codes.name.lower()} codes are refused",
                fix="int8 with zero point 0 (lower bits live inside int8)",
            )


@rule("activations quantized to int4", errors=NVIDIA)
def int4_activation(view: View) -> Iterator[Hit]:
    """TensorRT's documentation: INT4 is for weights alone. RTX 1.7.1: q, k, v and softmax fail to build."""
    for node in view.activation_quantizers:
        if code_type(node) == _T.INT4:
            yield Hit(
                node=node,
                reason="int4 is for weights alone: the build fails, or the codes run as int8",
                fix="a float Clip to the 4-bit grid, then QuantizeLinear to int8 with zero point 0",
            )


@rule("an int32 bias behind DequantizeLinear", errors=NVIDIA)
def int32_bias(view: View) -> Iterator[Hit]:
    """TensorRT's parser refuses int32 DequantizeLinear (RTX 1.7.1); ONNX Runtime's quantizer writes one per bias."""
    for node in view.of_type(DQ):
        if code_type(node) == _T.INT32:
            yield Hit(
                node=node,
                reason="int32 codes are refused",
                fix="keep the bias in floating point (quantize_static: extra_options={'QuantizeBias': False})",
            )


@rule("operators that multiply integers themselves (MatMulInteger, QLinearMatMul, QLinearConv, …)", errors=NVIDIA)
def integer_operator(view: View) -> Iterator[Hit]:
    """TensorRT takes explicit Q/DQ around float operators; these have no importer in its parser (RTX 1.7.1)."""
    for node in view.of_type(*_INTEGER_OPERATORS):
        yield Hit(
            node=node,
            reason=f"the parser has no {node.op_type}",
            fix="write Q/DQ around the float operator (quantize_static: quant_format=QuantFormat.QDQ)",
        )


@rule("ConvInteger with int8 weights", warnings=("onnx",))
def signed_convolution(view: View) -> Iterator[Hit]:
    """ONNX Runtime 1.31 on x64 multiplies signed ones with a plain loop (AVX2); older versions have no kernel for them."""
    for node in view.of_type("ConvInteger"):
        weight = given(node, 1)
        if weight is not None and weight.dtype == ir.DataType.INT8:
            yield Hit(
                node=node,
                reason="int8 weights: on x64 ONNX Runtime multiplies them with a plain loop",
                fix="uint8 weights, 128 more, with 128 as their zero point: the sums are the same",
            )


@rule("int8 QuantizeLinear with both a zero point and output_dtype", errors=("onnx",))
def output_dtype_twice(view: View) -> Iterator[Hit]:
    """ONNX Runtime 1.31 on x64 rewrites int8 activations to uint8, leaves output_dtype and then refuses its own graph."""
    for node in view.activation_quantizers:
        if integer(node, "output_dtype", 0) == _T.INT8 and given(node, 2) is not None:
            yield Hit(
                node=node,
                reason="output_dtype int8 beside an int8 zero point: the session does not load",
                fix="leave output_dtype out; the zero point's type says the same",
            )


@rule("int8 QuantizeLinear with output_dtype in the place of a zero point", warnings=("onnx",))
def output_dtype_alone(view: View) -> Iterator[Hit]:
    """ONNX Runtime 1.31 loads it and multiplies floats."""
    for node in view.activation_quantizers:
        if integer(node, "output_dtype", 0) == _T.INT8 and given(node, 2) is None:
            yield Hit(
                node=node,
                reason="int8 by output_dtype alone: the product behind it runs in floating point",
                fix="give it an explicit zero point, and leave output_dtype out",
            )


@rule("activations in 4 or 16 bits", warnings=("onnx",))
def wide_activation(view: View) -> Iterator[Hit]:
    """ONNX Runtime's MatMul selector takes 8-bit activations alone; others load and run in floating point."""
    for node in view.activation_quantizers:
        codes = code_type(node)
        if codes in (_T.INT4, _T.UINT4, _T.INT16, _T.UINT16):
            yield Hit(
                node=node,
                reason=f"{codes.name.lower()} activations are dequantized, the product runs in floating point",
                fix="uint8; fewer bits: a float Clip to the grid before QuantizeLinear",
            )


@rule("a Clip on int8 codes between Q and DQ", warnings=("onnx",))
def integer_clip(view: View) -> Iterator[Hit]:
    """ONNX Runtime 1.31 rewrites int8 codes to uint8 only where nothing stands between, and multiplies floats else."""
    for node in view.of_type("Clip"):
        readers = [use.node for use in node.outputs[0].uses()]
        quantizers = [quantize_of(reader) for reader in readers if reader.op_type == DQ]
        if any(q is not None and code_type(q) == _T.INT8 for q in quantizers):
            yield Hit(
                node=node,
                reason="a node between QuantizeLinear and DequantizeLinear: the product runs in floating point",
                fix="clip the float tensor before QuantizeLinear",
            )


@rule("no QuantizeLinear or DequantizeLinear at all", warnings=ANY)
def nothing_quantized(view: View) -> Iterator[Hit]:
    """A float graph passes every other rule."""
    if not view.quantizers and not any(view.of_type(*_INTEGER_OPERATORS)):
        yield Hit(
            node=None,
            reason=f"{len(view.nodes)} nodes and none quantizes: everything runs in floating point",
            fix="erq-export MODEL --bits w8a8 --to TARGET writes a quantized graph",
        )


RULES = (
    missing_zero_point,
    uint8_codes,
    nonzero_zero_point,
    unsupported_codes,
    int4_activation,
    int32_bias,
    integer_operator,
    signed_convolution,
    output_dtype_twice,
    output_dtype_alone,
    wide_activation,
    integer_clip,
    nothing_quantized,
)
