"""Rules on attention: what keeps TensorRT from one fused kernel, or from integers in it."""

from collections.abc import Iterator

from .attention_view import attentions, projection
from .rule import NVIDIA, Hit, rule
from .view import DQ, MOVEMENT, Q, View, back, dims, given, named, per_channel, quantize_of

HEAD_SIZES = (16, 32, 64)
MOST_TOKENS = 512


@rule("attention with some of q, k, v, softmax and output quantized, not all", warnings=NVIDIA)
def partly_quantized_attention(view: View) -> Iterator[Hit]:
    """RTX 1.7.1 and TensorRT's published conditions: one missing and the fused kernel is lost, not one product of it.
    A quantized output alone is fine: it belongs to the projection behind it."""
    for attention in attentions(view):
        sites = attention.sites
        if any(sites[n] for n in ("q", "k", "v", "softmax")) and not attention.integer:
            missing = ", ".join(name for name, quantized in sites.items() if not quantized)
            yield Hit(
                node=attention.softmax,
                reason=f"not quantized: {missing}; attention falls apart into unfused kernels",
                fix="quantize all five (q, k, v, softmax, output), or none of the first four",
            )


@rule("QuantizeLinear on the output of a product", warnings=NVIDIA)
def quantized_product_output(view: View) -> Iterator[Hit]:
    """RTX 1.7.1: on the logits of integer attention it loses the fused kernel (33 kernels instead of 19 for two blocks);
    elsewhere the kernels stay and the error grows. ONNX Runtime's quantizer writes one on every product. q, k, v and
    attention's own output are meant to be quantized."""
    every = tuple(attentions(view))
    logits = {id(a.qk) for a in every if a.integer}
    meant = {id(quantizer) for a in every for quantizer in a.quantizers}
    meant |= {
        id(quantize_of(site.dequantize)) for a in every for site in (a.q, a.k, a.v) if site.dequantize is not None
    }
    for product in view.products:
        for use in product.node.outputs[0].uses():
            if use.node.op_type == Q and id(use.node) not in meant and product.node.op_type != "Conv":
                yield Hit(
                    node=use.node,
                    reason=f"it rounds the output of {named(product.node)}: "
                    + ("attention is not fused" if id(product.node) in logits else "error, no speed"),
                    fix="quantize inputs of products alone",
                )


@rule("a Clip between softmax and the product with v, in integer attention", warnings=NVIDIA)
def clip_on_softmax(view: View) -> Iterator[Hit]:
    """RTX 1.7.1: a Clip there, float or int8, loses the fused kernel (33 kernels instead of 19 for two blocks)."""
    for attention in attentions(view):
        if attention.p.dequantize is None:
            continue
        passed = back(attention.pv.inputs[0], MOVEMENT | {"Clip", "Cast", Q, DQ})[1]
        for node in passed:
            if node.op_type == "Clip":
                yield Hit(
                    node=node,
                    reason="the fused kernel has no Clip behind softmax",
                    fix="choose the scale so that nothing saturates: at least 1 / largest code (1/15 at 4 bits)",
                )


@rule("a float Clip on the output of integer attention", warnings=NVIDIA)
def float_clip_on_output(view: View) -> Iterator[Hit]:
    """RTX 1.7.1: the integer kernel writes int8 itself; a float Clip before that quantizer loses it."""
    for attention in attentions(view):
        if not attention.integer:
            continue
        for quantizer in attention.quantizers:
            for node in back(quantizer.inputs[0], MOVEMENT | {"Clip", "Cast"})[1]:
                if node.op_type == "Clip":
                    yield Hit(
                        node=node,
                        reason="a float Clip between attention and its quantizer: the fused kernel is lost",
                        fix="a Clip of the int8 codes behind QuantizeLinear, or 8 bits there",
                    )


@rule("integer attention of a size that has no fused kernel", warnings=NVIDIA)
def attention_size(view: View) -> Iterator[Hit]:
    """TensorRT's published conditions, equal on RTX 1.7.1: head size 16, 32 or 64, at most 512 tokens."""
    for attention in attentions(view):
        size, tokens = attention.head_size, attention.tokens
        if not attention.integer:
            continue
        if size is not None and size not in HEAD_SIZES:
            yield Hit(
                node=attention.softmax,
                reason=f"head size {size}; the integer kernel takes 16, 32 or 64",
                fix="leave q, k, v and softmax in floating point: that kernel takes any multiple of 8",
            )
        if tokens is not None and tokens > MOST_TOKENS:
            yield Hit(
                node=attention.softmax,
                reason=f"{tokens} tokens; the integer kernel takes at most {MOST_TOKENS}",
                fix="leave q, k, v and softmax in floating point: that kernel takes any number",
            )


@rule("a fused qkv weight with a scale per channel: multiplied in floating point", warnings=NVIDIA)
def qkv_per_channel(view: View) -> Iterator[Hit]:
    """RTX 1.7.1 pushes the split of q, k and v through the product, dequantizes the weight and multiplies floats, without
    a message, where the product is reshaped and then cut. Not where it is cut first, or q, k and v are quantized."""
    by_node = {product.node: product for product in view.products}
    found = set()
    for attention in attentions(view):
        projected = [projection(v) for v in (attention.qk.inputs[0], attention.qk.inputs[1], attention.pv.inputs[1])]
        node = projected[0]
        if node is None or any(other is not node for other in projected):
            continue
        product = by_node[node]
        weight = product.weight
        if product.quantized and weight is not None and weight.dequantize is not None and node not in found:
            found.add(node)
            if per_channel(weight.dequantize):
                yield Hit(
                    node=node,
                    reason=f"its weight has {dims(given(weight.dequantize, 1))} scales and q, k, v are split behind it",
                    fix="one power-of-two weight scale in DequantizeLinear, the ratios in a Mul behind the product",
                )


@rule("the Attention operator of opset 23", warnings=NVIDIA)
def attention_operator(view: View) -> Iterator[Hit]:
    """RTX 1.7.1: Q/DQ around it are wasted in float16, in float32 it fails to build ("not decomposable")."""
    for node in view.of_type("Attention"):
        yield Hit(
            node=node,
            reason="Q/DQ around it are not used; a float32 graph with it does not build",
            fix="export with opset 21, where attention is MatMul, Softmax, MatMul",
        )


@rule("attention in float32: not fused", warnings=NVIDIA)
def float32_attention(view: View) -> Iterator[Hit]:
    """RTX 1.7.1 fuses attention in float16 alone; compute capability 7.5 refuses float32 products altogether."""
    for attention in attentions(view):
        dtype = attention.qk.outputs[0].dtype
        if dtype is not None and dtype.name == "FLOAT" and not attention.integer:
            yield Hit(
                node=attention.softmax,
                reason="q, k and v are float32",
                fix="export the model in float16 with LayerNorm in float32",
            )


RULES = (
    partly_quantized_attention,
    quantized_product_output,
    clip_on_softmax,
    float_clip_on_output,
    attention_size,
    qkv_per_channel,
    attention_operator,
    float32_attention,
)
