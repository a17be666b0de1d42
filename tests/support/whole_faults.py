"""Faults in a graph of the whole detector, one after another."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from parity_fixtures import constant

Fault = Callable[[ir.Graph], None]
MEDIAN = 0.5  # of the proposals' scores, about


def operand(operator: str, which: int, i: int, new: float) -> Fault:
    """The i-th input of the which-th operator of a kind."""

    def plant(graph: ir.Graph) -> None:
        node = [node for node in graph if node.op_type == operator][which]
        old = node.inputs[i]
        assert old is not None
        assert old.const_value is not None
        array = np.full_like(old.const_value.numpy(), new)
        value = ir.Value(name="planted", const_value=ir.tensor(array, name="planted"))
        graph.register_initializer(value)
        node.replace_input_with(i, value)

    return plant


def negated(graph: ir.Graph) -> None:
    """The worst class instead of the best."""
    node = next(node for node in graph if node.op_type == "ArgMax")
    negative = ir.node("Neg", [node.inputs[0]])
    graph.insert_before(node, negative)
    node.replace_input_with(0, negative.outputs[0])


def reversed_below(graph: ir.Graph) -> None:
    """Proposals: the scores s of the worst half in reverse order, by |s − m| with the median m."""
    node = next(node for node in graph if node.op_type == "NonMaxSuppression")
    median, two = (ir.Value(name=name, const_value=ir.tensor(x, name=name)) for name, x in (("m", MEDIAN), ("k", 1.0)))
    for value in (median, two):
        graph.register_initializer(value)
    shifted = ir.node("Sub", [node.inputs[1], median])
    mirrored = ir.node("Abs", [shifted.outputs[0]])
    graph.insert_before(node, [shifted, mirrored])
    node.replace_input_with(1, mirrored.outputs[0])


def of_output(name: str, operator: str, by: float) -> Fault:
    """What the graph gives at last."""

    def plant(graph: ir.Graph) -> None:
        i, output = next((i, value) for i, value in enumerate(graph.outputs) if value.name == name)
        dtype = np.int64 if output.dtype == ir.DataType.INT64 else np.float32
        other = ir.Value(name="by", const_value=ir.tensor(np.array(by, dtype), name="by"))
        graph.register_initializer(other)
        changed = ir.node(operator, [output, other])
        output.name = f"{name} before"
        changed.outputs[0].name, changed.outputs[0].dtype, changed.outputs[0].shape = name, output.dtype, output.shape
        graph.append(changed)
        graph.outputs[i] = changed.outputs[0]

    return plant


def smallest(graph: ir.Graph) -> None:
    """The worst anchors of the first level."""
    node = next(node for node in graph if node.op_type == "TopK")
    node.attributes["largest"] = ir.AttrInt64("largest", 0)


def sampled(graph: ir.Graph) -> None:
    """torchvision's own two samples a side, not as many as the box is large."""
    for node in graph:
        if node.op_type == "RoiAlign":
            node.attributes["sampling_ratio"] = ir.AttrInt64("sampling_ratio", 2)


def coarser(graph: ir.Graph) -> None:
    """Boxes are pooled from the wrong map: levels begin at 64 pixels, not at 56."""
    roots = {id(node.outputs[0]) for node in graph if node.op_type == "Sqrt"}
    divided = [node for node in graph if node.op_type == "Div" and id(node.inputs[0]) in roots]
    assert divided
    constant(graph, str(divided[0].inputs[1].name), lambda array: array * 64 / 56)  # type: ignore[union-attr]
