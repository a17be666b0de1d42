"""Rules on products and their weights: which of them stay in floating point although something is quantized."""

from collections.abc import Iterator

import onnx_ir as ir

from .rule import ANY, NVIDIA, Hit, rule
from .shown import shown
from .view import (
    DQ,
    LAYOUT,
    MOVEMENT,
    Product,
    Q,
    View,
    ahead,
    back,
    code_type,
    dims,
    given,
    integer,
    is_constant,
    named,
)

_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)
_NEVER_INTEGER = frozenset({"LayerNormalization", "Gelu", "Erf", "Pow", "Sqrt", "ReduceMean", "Tanh"})


def _weight_type(product: Product) -> ir.DataType | None:
    weight = product.weight
    return None if weight is None or weight.dequantize is None else code_type(weight.dequantize)


@rule("a weight stored in floating point and quantized while the graph runs", warnings=ANY)
def float_weight(view: View) -> Iterator[Hit]:
    """The file holds 4 bytes a weight instead of 1; results are equal, both backends fold it when they load."""
    for node in view.of_type(Q):
        source, _ = back(node.inputs[0], MOVEMENT)
        if source is not None and is_constant(source):
            shape = dims(source)
            yield Hit(
                node=node,
                reason=f"{shown(source.name)} {shape or ''} is stored in floating point and quantized at load",
                fix="store its integers and keep DequantizeLinear alone",
            )


@rule("a product with one quantized operand", warnings=ANY)
def one_side_quantized(view: View) -> Iterator[Hit]:
    """An integer product needs integers on both sides; 4-bit weights with float inputs are a method of their own."""
    for product in view.products:
        sides = [product.a.dequantize, product.b.dequantize]
        if (sides[0] is None) == (sides[1] is None) or _weight_type(product) in _FOUR_BITS:
            continue
        bare = "first" if sides[0] is None else "second"
        yield Hit(
            node=product.node,
            reason=f"its {bare} operand is not quantized: it multiplies in floating point",
            fix="quantize both operands, or neither",
        )


@rule("arithmetic between DequantizeLinear and the product", warnings=("onnx",))
def arithmetic_before_product(view: View) -> Iterator[Hit]:
    """ONNX Runtime's selector wants DequantizeLinear itself as the operand (1.31: Mul, Clip or Cast keep it in floats)."""
    for product in view.products:
        between = (*product.a.between, *product.b.between)
        if product.quantized and between:
            names = ", ".join(named(node) for node in between)
            yield Hit(
                node=product.node,
                reason=f"{names} between DequantizeLinear and it: it multiplies in floating point",
                fix="move it before QuantizeLinear, or fold a factor into the scale or the weight",
            )


@rule("a weight dequantized and clipped before its product", warnings=NVIDIA)
def clip_on_weight(view: View) -> Iterator[Hit]:
    """RTX 1.7.1: a Clip between makes a floating-point product; Mul is folded."""
    for product in view.products:
        weight = product.weight
        clips = [] if weight is None else [node for node in weight.between if node.op_type == "Clip"]
        if product.quantized and clips:
            yield Hit(
                node=product.node,
                reason=f"{named(clips[0])} between the weight's DequantizeLinear and it: it multiplies floats",
                fix="clip the stored integers",
            )


@rule("Gemm, or a product of two axes with Add, whose bias is floating point", warnings=("onnx",))
def float_bias(view: View) -> Iterator[Hit]:
    """ONNX Runtime 1.31: QGemm wants a bias of int32 codes or none; a MatMul of rank 2 with Add becomes Gemm first."""
    for product in view.products:
        if not product.quantized:
            continue
        node, bias = product.node, product.bias
        if node.op_type == "MatMul" and product.output_rank == 2 and product.weight is not None:
            adds = [u.node for u in node.outputs[0].uses() if u.node.op_type == "Add"]
            biases = [v for add in adds for v in add.inputs if v is not node.outputs[0]]
            bias = biases[0] if len(biases) == 1 and is_constant(back(biases[0], MOVEMENT | {DQ})[0]) else None
        elif node.op_type != "Gemm":
            continue
        maker = bias.producer() if bias is not None else None
        if bias is not None and not (maker is not None and maker.op_type == DQ):
            yield Hit(
                node=node,
                reason=f"its bias {shown(bias.name)} is floating point: it stays a float Gemm",
                fix="give the product a third axis (Unsqueeze before, Squeeze behind), or an int32 bias",
            )


@rule("a quantized Conv whose output is not quantized", warnings=("onnx",))
def conv_output(view: View) -> Iterator[Hit]:
    """ONNX Runtime has QLinearConv alone: DQ, DQ → Conv → Q. Without the last it convolves floats (1.31)."""
    for product in view.products:
        readers = [use.node.op_type for use in product.node.outputs[0].uses()]
        if product.node.op_type == "Conv" and product.quantized and set(readers) != {Q}:
            yield Hit(
                node=product.node,
                reason="no QuantizeLinear on its output: it convolves in floating point",
                fix="quantize its output too, or write a patch embedding as Reshape and MatMul",
            )


@rule("4-bit weights with quantized activations", warnings=("onnx",))
def int4_weight(view: View) -> Iterator[Hit]:
    """ONNX Runtime multiplies 4-bit weights with float inputs alone (MatMulNBits)."""
    for product in view.products:
        if product.quantized and (codes := _weight_type(product)) in _FOUR_BITS and codes is not None:
            yield Hit(
                node=product.node,
                reason=f"{codes.name.lower()} weight and quantized input: it multiplies in floating point",
                fix="hold the 4-bit codes in int8, or leave the input in floating point",
            )


@rule("int4 weights with quantized activations and not one scale a channel", errors=NVIDIA)
def int4_scale(view: View) -> Iterator[Hit]:
    """RTX 1.7.1 builds an integer product from int4 weights with a scale per output channel; it fails to build where the
    scale is one for the tensor or one a block."""
    for product in view.products:
        weight = product.weight
        if product.quantized and _weight_type(product) == ir.DataType.INT4 and weight is not None and weight.dequantize:
            scale = dims(given(weight.dequantize, 1)) or ()
            if integer(weight.dequantize, "block_size", 0) or len(scale) != 1:
                yield Hit(
                    node=product.node,
                    reason=f"an int4 weight with scales {scale} and a quantized input: the build fails",
                    fix="one scale an output channel, or the 4-bit codes held in int8",
                )


@rule("int8 activations shared by several products", warnings=("onnx",))
def shared_int8(view: View) -> Iterator[Hit]:
    """ONNX Runtime 1.31 on x64 rewrites int8 activations to uint8 only where one node reads them."""
    for node in view.activation_quantizers:
        readers = [use.node for use in node.outputs[0].uses() if use.node.op_type == DQ]
        if code_type(node) != ir.DataType.INT8 or not readers:
            continue
        products = [n for dq in readers for n in ahead(dq.outputs[0], MOVEMENT) if n.op_type == "MatMul"]
        if len(products) > 1:
            yield Hit(
                node=node,
                reason=f"{len(products)} products read its int8 codes: they multiply in floating point",
                fix="uint8 activations (the same scale, zero point 128)",
            )


@rule("int8 activations next to Reshape or Transpose from opset 21 on: does not load on x64", errors=("onnx",))
def int8_moved(view: View) -> Iterator[Hit]:
    """ONNX Runtime 1.31 on x64: InferenceSession raises (microsoft/onnxruntime#25526). It loads where the
    moved tensor is quantized again at once, as ONNX Runtime's own quantizer does."""
    if view.model.opset_imports.get("", 1) < 21:
        return
    for q, dq in view.pairs:
        if code_type(q) != ir.DataType.INT8 or is_constant(q.inputs[0]):
            continue
        moves = [use.node for use in dq.outputs[0].uses() if use.node.op_type in LAYOUT]
        if any(use.node.op_type != Q for move in moves for use in move.outputs[0].uses()):
            yield Hit(
                node=dq,
                reason="int8 codes are moved by Reshape or Transpose behind it: the session does not load",
                fix="uint8 activations, opset 20, or Q/DQ behind the Reshape and Transpose",
            )


@rule("quantizers that buy nothing: LayerNorm, GELU and their parts run in floating point", warnings=ANY)
def nothing_gained(view: View) -> Iterator[Hit]:
    """Neither backend has an integer LayerNorm or GELU: the pair adds error (RTX 1.7.1: as many kernels as without)."""
    for _, dq in view.pairs:
        readers = list(ahead(dq.outputs[0], MOVEMENT))
        if readers and all(node.op_type in _NEVER_INTEGER for node in readers):
            yield Hit(
                node=dq,
                reason=f"only {named(readers[0])} reads it, in floating point",
                fix="remove the pair; quantize what products read",
            )


@rule("a residual that is quantized", warnings=NVIDIA)
def residual_quantized(view: View) -> Iterator[Hit]:
    """RTX 1.7.1, vision transformer: the number of kernels stays, the error grows."""
    for node in view.of_type("Add"):
        sides = [value.producer() for value in node.inputs if value is not None]
        if len(sides) == 2 and all(s is not None and s.op_type == DQ and not is_constant(s.inputs[0]) for s in sides):
            yield Hit(
                node=node,
                reason="both operands are rounded to 8 bits and added in floating point: error, no speed",
                fix="leave residual additions in floating point",
            )


RULES = (
    float_weight,
    one_side_quantized,
    arithmetic_before_product,
    clip_on_weight,
    float_bias,
    conv_output,
    int4_weight,
    int4_scale,
    shared_int8,
    int8_moved,
    nothing_gained,
    residual_quantized,
)
