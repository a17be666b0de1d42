"""Where a graph computes attention: softmax(q kᵀ) v, found from each softmax outwards."""

from collections.abc import Iterator

import onnx_ir as ir

from erq_export.contract.manifest import Arithmetic, AttentionOperator
from erq_export.contract.quantized import OPERAND_MARKER

MOVEMENT = {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Gather", "Split", "Expand", "Identity", "Flatten"}
MOVEMENT |= {"Concat", "Pad"}  # the roll of shifted windows; zeros beside them
_BESIDE_SCORES = {"Add", "Mul", "Div", "Cast", *MOVEMENT}  # bias, mask, scale
_BEHIND_SOFTMAX = {"Clip", "QuantizeLinear", "DequantizeLinear", "Cast", *MOVEMENT}


def attention_operators(model: ir.Model, carrier: Arithmetic) -> list[AttentionOperator]:
    """Every attention operator of a lowered graph, in its order; those that are not integer compute in `carrier`.

    A softmax that no product follows is not one.
    """
    found = []
    for softmax in (node for node in model.graph if node.op_type == "Softmax"):
        scores, context = _producer(softmax.inputs[0], _BESIDE_SCORES), _product_behind(softmax)
        if scores is None or scores.op_type != "MatMul" or context is None:
            continue
        operands = [_producer(value, MOVEMENT) for product in (scores, context) for value in product.inputs]
        integer = all(node is not None and node.op_type == "DequantizeLinear" for node in operands)
        names = {"scores": str(scores.name), "softmax": str(softmax.name), "context": str(context.name)}
        path = str(softmax.name).rpartition("/")[0]
        found.append(AttentionOperator(path=path, precision="int8" if integer else carrier, **names))
    return found


def follows_int8_attention(marker: ir.Node) -> bool:
    """Does a layer read the product of a quantized softmax, moved about at most? Asked while the markers stand."""
    product = _producer(marker.inputs[0], MOVEMENT)
    if product is None or product.op_type != "MatMul":
        return False
    softmax = _producer(product.inputs[0], MOVEMENT)
    return softmax is not None and softmax.op_type == OPERAND_MARKER


def _producer(value: ir.Value | None, through: set[str]) -> ir.Node | None:
    """The first node upstream that is not one of `through`, along first inputs."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in through:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node


def _product_behind(node: ir.Node) -> ir.Node | None:
    """The first MatMul downstream, behind quantizers and movement only."""
    return next((user for user in _downstream(node) if user.op_type == "MatMul"), None)


def _downstream(node: ir.Node) -> Iterator[ir.Node]:
    for use in node.outputs[0].uses():
        yield use.node
        if use.node.op_type in _BEHIND_SOFTMAX:
            yield from _downstream(use.node)
