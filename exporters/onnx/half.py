"""From a float32 marker graph to a float16 carrier, with LayerNorm islands in float32.

One forward walk gives every value its type. Data movement keeps the type that comes in; LayerNorm computes and returns
float32, so that the quantizer behind it divides in float32; a marker takes either and returns float16; all else is
float16. Casts stand where the types meet, one per value. The graph's own input and output stay float32.
"""

import onnx_ir as ir

from erq_export.contract.quantized import MARKERS

from .attention import MOVEMENT
from .graph import Editor, value_of

ISLANDS = {"LayerNormalization"}
F16, F32 = ir.DataType.FLOAT16, ir.DataType.FLOAT
FLOATS = (F16, F32)


def to_half(model: ir.Model) -> None:
    """Retype the marker graph in place."""
    editor = Editor(model)
    halved: dict[tuple[str, ir.DataType], ir.Value] = {}
    for node in list(model.graph):
        if node.op_type in MARKERS:
            node.outputs[0].type = ir.TensorType(F16)  # not .dtype: copies of a graph share type objects
            continue
        if node.outputs[0].dtype not in FLOATS:  # shapes and indices
            continue
        wanted = F32 if node.op_type in ISLANDS else F16
        if node.op_type in MOVEMENT and node.inputs[0] is not None and not node.inputs[0].is_initializer():
            wanted = node.inputs[0].dtype or F16
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype in FLOATS and value.dtype != wanted:
                node.replace_input_with(i, _typed(editor, node, value, wanted, halved))
        for out in node.outputs:
            out.type = ir.TensorType(wanted)
    for i, out in enumerate(model.graph.outputs):
        if out.dtype == F16:
            model.graph.outputs[i] = _float_output(model, out)


def _typed(
    editor: Editor, before: ir.Node, value: ir.Value, dtype: ir.DataType, made: dict[tuple[str, ir.DataType], ir.Value]
) -> ir.Value:
    """`value` in another type: a converted constant, or a Cast, made once."""
    key = (str(value.name), dtype)
    if key not in made:
        suffix = "half" if dtype == F16 else "float"
        if value.is_initializer():
            made[key] = editor.constant(f"{value.name}.{suffix}", value_of(value).astype(dtype.numpy()))
        else:
            made[key] = editor.node(
                before, "Cast", [value], f"{value.name}/to_{suffix}", dtype=dtype, shape=value.shape, to=int(dtype)
            )
    return made[key]


def _float_output(model: ir.Model, out: ir.Value) -> ir.Value:
    """The float16 output behind a Cast to float32 that takes over its public name."""
    name = str(out.name)
    cast = ir.node("Cast", [out], {"to": int(F32)}, name=f"{name}/to_float")
    out.name = f"{name}.half"
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, ir.TensorType(F32), out.shape
    model.graph.append(cast)
    return cast.outputs[0]
