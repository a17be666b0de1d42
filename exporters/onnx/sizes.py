"""What a model takes in a file: as float32, with int8 weights, with weights of at most 4 bits packed in INT4."""

from collections.abc import Mapping

import onnx_ir as ir

from erq_export.contract.manifest import Sizes
from erq_export.contract.quantized import LAYER_MARKERS, OPERAND_MARKER
from erq_export.contract.targets import Target

from .graph import value_of
from .packing import packable, packed_bytes


def float_bytes(markers: ir.Model) -> int:
    """Bytes of all tensors of the float32 model behind a marker graph: 4 for every weight, bias and leftover."""
    own: dict[str, int] = {}
    shared: dict[str, int] = {}
    for node in markers.graph:
        constants = [v for v in node.inputs if v is not None and v.is_initializer()]
        if node.op_type in LAYER_MARKERS:
            q, _, bias, _ = (value_of(v) for v in constants)
            own[str(node.name)] = 4 * (q.size + bias.size)
        elif node.op_type != OPERAND_MARKER:  # its scale is no part of a float model
            shared |= {str(v.name): value_of(v).nbytes for v in constants}
    return sum(own.values()) + sum(shared.values())


def tensor_bytes(model: ir.Model) -> int:
    """Bytes of all initializers as they lie in the file, INT4 two to a byte; names and nodes come on top."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def sizes(markers: ir.Model, model: ir.Model, w_bits: Mapping[str, int], target: Target) -> Sizes:
    """Bytes of the tensors: `float32`, `int8`, `int4`, and `written` as this graph has them.

    w_bits: designed weight bits by layer path. Convolutions are never packed; where no layer can be, `int4` is `int8`.
    """
    written = tensor_bytes(model)
    int8 = int4 = written
    for path, bits in w_bits.items():
        weight = model.graph.initializers[f"{path}.weight_q"]
        q = value_of(weight)
        packed = packed_bytes(q.shape[0], q.shape[1], target) if q.ndim == 2 and packable(q.shape[1], bits) else q.size
        now = packed if weight.dtype == ir.DataType.INT4 else q.size
        int8 += q.size - now
        int4 += packed - now
    return Sizes(float32=float_bytes(markers), int8=int8, int4=int4, written=written)
