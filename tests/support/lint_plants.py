"""One planted violation for every rule: which graph, which damage, which node, and how the real backend shows it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from lint_graphs import (
    DIM,
    SCALE,
    Block,
    attribute,
    block,
    bypass,
    const,
    conv,
    four_bits,
    gemm,
    insert,
    node,
    opset,
    pair,
    value,
)
from vit_graph import ViT

Damage = Callable[[onnx.ModelProto], object]
INT4, UINT4, INT16 = onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.INT16
HALF = 10


@dataclass(frozen=True, kw_only=True)
class Plant:
    """`shown`: refused (by the parser, the builder, the session), slower (fewer integer products, fused attentions, or
    more kernels than the clean graph), or nothing that a backend could show without a GPU or at all."""

    rule: str
    target: str
    at: str
    damage: Damage
    shown: Literal["refused", "slower", "nothing"]
    clean: Callable[[str], onnx.ModelProto] = block


def large(target: str) -> onnx.ModelProto:
    return Block(target, tokens=513).model()


def wide(target: str) -> onnx.ModelProto:
    return Block(target, dim=48).model()


def vit_channel(target: str) -> onnx.ModelProto:
    """Two blocks with a scale per channel, whose qkv is reshaped and then cut."""
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(ViT("channel").save(Path(folder) / "vit.onnx"))


def as_is(model: onnx.ModelProto) -> None:
    """The graph that was made is the violation."""


def without(name: str, index: int) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        del node(model, name).input[index]

    return damage


def rename(name: str, op: str) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        node(model, name).op_type = op

    return damage


def set_to(name: str, array: object) -> Damage:
    return lambda model: const(model, name, np.asarray(array))


def all_of(*damages: Damage) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        for each in damages:
            each(model)

    return damage


def float_weight(model: onnx.ModelProto) -> None:
    """The weight's floats, with a quantizer before the dequantizer that was there."""
    scale = value(model, "fc.weight_scale")
    const(model, "fc.weight", (value(model, "fc.weight") * scale).astype(scale.dtype))
    insert(model, "fc/weight/DQ", 0, "QuantizeLinear", "fc.weight_scale", "fc.weight_zero")


def int32_bias(model: onnx.ModelProto) -> None:
    const(model, "fc.bias", np.ones(DIM, np.int32))
    const(model, "fc.bias_scale", np.asarray(0.1, np.float16))
    insert(model, "fc/Add", 1, "DequantizeLinear", "fc.bias_scale")


def dynamic_scale(model: onnx.ModelProto) -> None:
    """The largest value of the tensor itself, in the place of a constant."""
    x = node(model, "gelu").output[0]
    model.graph.node.insert(
        list(model.graph.node).index(node(model, "fc/Q")),
        onnx.helper.make_node("ReduceMax", [x], ["fc.max"], name="fc/Max", keepdims=0),
    )
    for name in ("fc/Q", "fc/DQ"):
        node(model, name).input[1] = "fc.max"


def per_channel(path: str) -> Damage:
    """A scale per output channel on a weight of the tensorrt form."""

    def damage(model: onnx.ModelProto) -> None:
        n = value(model, f"{path}.weight").shape[1]
        scale = np.full(n, value(model, f"{path}.weight_scale"), np.float16)
        const(model, f"{path}.weight_scale", scale)
        const(model, f"{path}.weight_zero", np.zeros(n, np.int8))
        attribute(model, f"{path}/weight/DQ", "axis", 1)

    return damage


def small_scales(model: onnx.ModelProto) -> None:
    const(model, "fc.weight_scale", np.asarray(SCALE / 64, np.float16))
    per_channel("fc")(model)


def short_scale(model: onnx.ModelProto) -> None:
    """31 scales for 32 channels."""
    per_channel("fc")(model)
    const(model, "fc.weight_scale", np.full(DIM - 1, SCALE, np.float16))
    const(model, "fc.weight_zero", np.zeros(DIM - 1, np.int8))


def four_bit_weight(block_size: int = 0) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        four_bits(model, "fc.weight")
        if block_size:
            const(model, "fc.weight_scale", np.full((DIM // block_size, DIM), SCALE, np.float16))
            const(model, "fc.weight_zero", np.zeros((DIM // block_size, DIM), np.int8))
            attribute(model, "fc/weight/DQ", "axis", 0)
            attribute(model, "fc/weight/DQ", "block_size", block_size)
        four_bits(model, "fc.weight_zero")

    return damage


def int4_clipped(path: str, kind: int) -> Damage:
    return lambda model: four_bits(model, f"{path}.zero", kind)


def share(model: onnx.ModelProto) -> None:
    """A second product reads the codes of the first, in int8."""
    const(model, "fc.zero", np.int8(0))
    at = list(model.graph.node).index(node(model, "fc/Add")) + 1
    again = [
        onnx.helper.make_node("MatMul", list(node(model, "fc").input), ["again"], name="again"),
        onnx.helper.make_node("Add", ["again", "fc/Add.out"], ["sum"], name="sum"),
    ]
    for i, made in enumerate(again):
        model.graph.node.insert(at + i, made)
    node(model, "out").input[0] = "sum"


def clip(before: str, dtype: type, low: float, high: float, index: int = 0) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        for name, bound in (("low", low), ("high", high)):
            const(model, f"{before}.{name}", np.asarray(bound, dtype))
        insert(model, before, index, "Clip", f"{before}.low", f"{before}.high")

    return damage


def integer_bias(model: onnx.ModelProto) -> None:
    const(model, "gemm.bias", np.ones(DIM, np.float32))
    node(model, "gemm").input.append("gemm.bias")


def scale_between(before: str, index: int, dtype: type) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        const(model, f"{before}.factor", np.asarray(0.5, dtype))
        insert(model, before, index, "Mul", f"{before}.factor")

    return damage


def float_everywhere(model: onnx.ModelProto) -> None:
    for path in ("qkv", "q", "k", "v", "p", "proj", "fc"):
        bypass(model, path)
    for path in ("qkv", "proj", "fc"):
        const(model, f"{path}.float", value(model, f"{path}.weight").astype(np.float32))
        node(model, path).input[1] = f"{path}.float"
        model.graph.node.remove(node(model, f"{path}/weight/DQ"))


def unquantized_attention(model: onnx.ModelProto) -> None:
    for path in ("q", "k", "v", "p"):
        bypass(model, path)


def all_float32(model: onnx.ModelProto) -> None:
    """The same graph, every float16 constant and cast in float32."""
    for tensor in [t for t in model.graph.initializer if t.data_type == HALF]:
        const(model, tensor.name, onnx.numpy_helper.to_array(tensor).astype(np.float32))
    attribute(model, "tokens/Cast", "to", 1)


def attention_operator(model: onnx.ModelProto) -> None:
    """q, k and v as (B, heads, T, d) into one operator."""
    opset(model, 23)
    attribute(model, "k/Transpose", "perm", 0)
    k = node(model, "k/Transpose")
    del k.attribute[:]
    k.attribute.append(onnx.helper.make_attribute("perm", [0, 2, 1, 3]))
    pv = node(model, "pv")
    made = onnx.helper.make_node(
        "Attention", ["q/Transpose.out", "k/Transpose.out", "v/Transpose.out"], ["pv.out"], name="attention"
    )
    model.graph.node.insert(list(model.graph.node).index(pv), made)
    for name in ("pv", "softmax", "qk", "p/Q", "p/DQ"):
        model.graph.node.remove(node(model, name))


def fixed_reshape(model: onnx.ModelProto) -> None:
    const(model, "merged", np.array([2, 16, DIM]))


def fixed_batch(model: onnx.ModelProto) -> None:
    for info in (model.graph.input[0], model.graph.output[0]):
        info.type.tensor_type.shape.dim[0].dim_value = 2


def to_uint8(path: str, zero: int = 0) -> Damage:
    return set_to(f"{path}.zero", np.uint8(zero))


def output_dtype(*, zero_point: bool) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        const(model, "fc.zero", np.int8(0))
        for name in () if zero_point else ("fc/Q", "fc/DQ"):
            del node(model, name).input[2]
        attribute(model, "fc/Q", "output_dtype", onnx.TensorProto.INT8)

    return damage


def int8_clip(model: onnx.ModelProto) -> None:
    const(model, "fc.zero", np.int8(0))
    clip("fc/DQ", np.int8, -8, 7)(model)


def weight_axis(model: onnx.ModelProto) -> None:
    attribute(model, "fc/weight/DQ", "axis", 0)


def two_axes(model: onnx.ModelProto) -> None:
    """A scale per channel on an activation."""
    for name in ("q_scale", "dq_scale"):
        const(model, f"fc.{name}", np.full(DIM, SCALE, np.float32))
    const(model, "fc.zero", np.full(DIM, 128, np.uint8))
    for name in ("fc/Q", "fc/DQ"):
        attribute(model, name, "axis", 2)


def conv_output(model: onnx.ModelProto) -> None:
    bypass(model, "output")


def signed_convolution(model: onnx.ModelProto) -> None:
    """The codes themselves are convolved, with the weights as they are."""
    convolution = node(model, "conv")
    convolution.op_type = "ConvInteger"
    convolution.input[:] = ["conv/Q.out", "conv.weight", "conv.zero"]
    insert(model, "output/Q", 0, "Cast", to=1)


def half_scales(model: onnx.ModelProto) -> None:
    for name in ("q_scale", "dq_scale", "weight_scale"):
        const(model, f"fc.{name}", value(model, f"fc.{name}").astype(np.float16))
    insert(model, "fc/Q", 0, "Cast", to=HALF)
    insert(model, "fc/Add", 0, "Cast", to=1)


def opset_12(model: onnx.ModelProto) -> None:
    opset(model, 12)


def attention_in_int8(model: onnx.ModelProto) -> None:
    for path in ("q", "k", "v"):
        const(model, f"{path}.zero", np.int8(0))


def residual(model: onnx.ModelProto) -> None:
    pair(model, "residual", 0, "fc")
    pair(model, "residual", 1, "fc")


RTX = "tensorrt-rtx"
PLANTS = (
    Plant(rule="missing-zero-point", target=RTX, at="fc/Q", damage=without("fc/Q", 2), shown="nothing"),
    Plant(rule="uint8-codes", target=RTX, at="fc/Q", damage=to_uint8("fc"), shown="refused"),
    Plant(rule="nonzero-zero-point", target=RTX, at="fc/Q", damage=set_to("fc.zero", np.int8(3)), shown="refused"),
    Plant(rule="unsupported-codes", target=RTX, at="fc/Q", damage=set_to("fc.zero", np.int16(0)), shown="refused"),
    Plant(rule="unsupported-codes", target=RTX, at="fc/Q", damage=int4_clipped("fc", UINT4), shown="refused"),
    Plant(rule="int4-activation", target=RTX, at="q/Q", damage=int4_clipped("q", INT4), shown="refused"),
    Plant(rule="int32-bias", target=RTX, at="fc/Add/in1/DequantizeLinear", damage=int32_bias, shown="refused"),
    Plant(rule="integer-operator", target=RTX, at="fc", damage=rename("fc", "MatMulInteger"), shown="refused"),
    Plant(rule="signed-convolution", target="onnx", at="conv", damage=signed_convolution, shown="nothing", clean=conv),
    Plant(rule="output-dtype-twice", target="onnx", at="fc/Q", damage=output_dtype(zero_point=True), shown="refused"),
    Plant(rule="output-dtype-alone", target="onnx", at="fc/Q", damage=output_dtype(zero_point=False), shown="slower"),
    Plant(rule="wide-activation", target="onnx", at="fc/Q", damage=set_to("fc.zero", np.uint16(0)), shown="slower"),
    Plant(rule="integer-clip", target="onnx", at="fc/DQ/in0/Clip", damage=int8_clip, shown="slower"),
    Plant(rule="nothing-quantized", target="onnx", at="graph", damage=float_everywhere, shown="slower"),
    Plant(rule="bad-scale", target=RTX, at="fc/DQ", damage=set_to("fc.dq_scale", np.float16(0)), shown="refused"),
    Plant(rule="dynamic-scale", target=RTX, at="fc/Q", damage=dynamic_scale, shown="slower"),
    Plant(rule="scale-type", target="onnx", at="fc/Q", damage=set_to("fc.q_scale", np.float16(SCALE)), shown="refused"),
    Plant(rule="scale-shape", target=RTX, at="fc/weight/DQ", damage=short_scale, shown="refused"),
    Plant(
        rule="pair-disagrees",
        target="onnx",
        at="fc/DQ",
        damage=set_to("fc.dq_scale", np.float32(2 * SCALE)),
        shown="nothing",
    ),
    Plant(rule="per-channel-activation", target="onnx", at="fc/Q", damage=two_axes, shown="refused"),
    Plant(rule="half-scale", target="onnx", at="fc/Q", damage=half_scales, shown="slower"),
    Plant(rule="subnormal-scale", target=RTX, at="fc", damage=small_scales, shown="nothing"),
    Plant(rule="weight-axis", target="onnx", at="fc/weight/DQ", damage=weight_axis, shown="nothing"),
    Plant(
        rule="weight-axis", target=RTX, at="fc/weight/DQ", damage=all_of(per_channel("fc"), weight_axis), shown="slower"
    ),
    Plant(
        rule="float-weight", target="onnx", at="fc/weight/DQ/in0/QuantizeLinear", damage=float_weight, shown="nothing"
    ),
    Plant(rule="one-side-quantized", target="onnx", at="fc", damage=lambda m: bypass(m, "fc"), shown="slower"),
    Plant(rule="one-side-quantized", target=RTX, at="fc", damage=lambda m: bypass(m, "fc"), shown="slower"),
    Plant(
        rule="arithmetic-before-product",
        target="onnx",
        at="qk",
        damage=scale_between("qk", 0, np.float32),
        shown="slower",
    ),
    Plant(rule="clip-on-weight", target=RTX, at="fc", damage=clip("fc", np.float16, -1, 1, 1), shown="slower"),
    Plant(rule="float-bias", target="onnx", at="gemm", damage=integer_bias, shown="slower", clean=gemm),
    Plant(rule="conv-output", target="onnx", at="conv", damage=conv_output, shown="slower", clean=conv),
    Plant(rule="int4-weight", target="onnx", at="fc", damage=four_bit_weight(), shown="slower"),
    Plant(rule="int4-scale", target=RTX, at="fc", damage=four_bit_weight(16), shown="refused"),
    Plant(rule="int4-scale", target=RTX, at="fc", damage=four_bit_weight(), shown="refused"),
    Plant(rule="shared-int8", target="onnx", at="fc/Q", damage=share, shown="slower"),
    Plant(rule="int8-moved", target="onnx", at="q/DQ", damage=attention_in_int8, shown="refused"),
    Plant(
        rule="nothing-gained",
        target=RTX,
        at="gelu/in0/DequantizeLinear",
        damage=lambda m: pair(m, "gelu", 0, "fc"),
        shown="nothing",
    ),
    Plant(rule="residual-quantized", target=RTX, at="residual", damage=residual, shown="nothing"),
    Plant(
        rule="partly-quantized-attention",
        target=RTX,
        at="softmax",
        damage=lambda m: bypass(m, "v"),
        shown="slower",
    ),
    Plant(
        rule="quantized-product-output",
        target=RTX,
        at="softmax/in0/QuantizeLinear",
        damage=lambda m: pair(m, "softmax", 0, "fc"),
        shown="slower",
    ),
    Plant(
        rule="clip-on-softmax", target=RTX, at="p/Q/in0/Clip", damage=clip("p/Q", np.float16, 0, 0.5), shown="slower"
    ),
    Plant(
        rule="float-clip-on-output",
        target=RTX,
        at="proj/Q/in0/Clip",
        damage=clip("proj/Q", np.float16, -0.5, 0.5),
        shown="slower",
    ),
    Plant(rule="attention-size", target=RTX, at="softmax", damage=as_is, shown="slower", clean=large),
    Plant(rule="attention-size", target=RTX, at="softmax", damage=as_is, shown="slower", clean=wide),
    Plant(
        rule="qkv-per-channel",
        target=RTX,
        at="blocks.0.attn.qkv/MatMul",
        damage=as_is,
        shown="slower",
        clean=vit_channel,
    ),
    Plant(rule="attention-operator", target=RTX, at="attention", damage=attention_operator, shown="slower"),
    Plant(
        rule="float32-attention",
        target=RTX,
        at="softmax",
        damage=all_of(unquantized_attention, all_float32),
        shown="slower",
    ),
    Plant(rule="opset-too-low", target="onnx", at="fc/weight/DQ", damage=opset_12, shown="refused"),
    Plant(rule="fixed-batch", target="onnx", at="graph", damage=fixed_batch, shown="slower"),
    Plant(rule="batch-in-reshape", target="onnx", at="merge", damage=fixed_reshape, shown="slower"),
)
