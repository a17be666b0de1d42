"""Rules on the model as a whole: opset and batch."""

import math
from collections.abc import Iterator

import onnx_ir as ir

from .rule import ANY, Hit, rule
from .shown import shown
from .view import HALF, View, array, code_type, dims, given, integer, per_channel

_SMALL = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT16, ir.DataType.UINT16)


@rule("the opset is older than what the quantizers use", errors=("onnx",), warnings=("tensorrt", "tensorrt-rtx"))
def opset_too_low(view: View) -> Iterator[Hit]:
    """ONNX: Q/DQ from opset 10, `axis` from 13, float16 scales from 19, 4 and 16 bits and blocks from 21.
    ONNX Runtime refuses the graph; RTX 1.7.1 reads it all the same."""
    opset = view.model.opset_imports.get("", 1)
    for node in view.quantizers:
        if node.domain not in ("", "ai.onnx"):
            continue
        scale = given(node, 1)
        needs = [(13, "a scale per channel", per_channel(node))]
        needs += [(19, "a float16 scale", scale is not None and scale.dtype == HALF)]
        needs += [(21, f"{getattr(code_type(node), 'name', '')} codes", code_type(node) in _SMALL)]
        needs += [(21, "blocks", bool(integer(node, "block_size", 0)))]
        for least, what, used in needs:
            if used and opset < least:
                yield Hit(
                    node=node, reason=f"opset {opset}; {what.lower()} need {least}", fix=f"export with opset {least}"
                )


@rule("an input with a fixed batch", warnings=ANY)
def fixed_batch(view: View) -> Iterator[Hit]:
    """An engine or session of such a graph takes this one batch. ONNX Runtime 1.31 moreover rewrites MatMul and Add of known
    sizes to Gemm, which it does not run in integers with a float bias."""
    for value in view.model.graph.inputs:
        shape = dims(value)
        if not value.is_initializer() and shape and len(shape) > 1 and shape[0] is not None:
            yield Hit(
                node=None,
                reason=f"input {shown(value.name)} {shape} takes batches of {shape[0]} alone",
                fix="export with a dynamic first dimension",
            )


@rule("a Reshape that fixes the batch although the input's is free", warnings=ANY)
def batch_in_reshape(view: View) -> Iterator[Hit]:
    """A shape of positive numbers alone fixes the number of elements: it fails on any batch but the traced one."""
    inputs = [v for v in view.model.graph.inputs if not v.is_initializer()]
    if not inputs or any(not (known := dims(v)) or known[0] is not None for v in inputs):
        return
    for node in _behind(inputs):
        shape = array(given(node, 1)) if node.op_type == "Reshape" else None
        if shape is not None and shape.ndim == 1 and shape.size > 1 and ((shape > 0) & (shape < math.inf)).all():
            yield Hit(
                node=node,
                reason=f"its shape is {shown(tuple(int(n) for n in shape))} whatever the batch",
                fix="-1 or 0 in the place of the batch",
            )


def _behind(inputs: list[ir.Value]) -> Iterator[ir.Node]:
    """Nodes whose values, not only shapes, come from the inputs."""
    waiting, seen = list(inputs), set()
    while waiting:
        for use in waiting.pop().uses():
            if use.node in seen or use.node.op_type in ("Shape", "Size"):
                continue
            seen.add(use.node)
            yield use.node
            waiting.extend(use.node.outputs)


RULES = (opset_too_low, fixed_batch, batch_in_reshape)
