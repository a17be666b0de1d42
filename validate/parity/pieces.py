"""Pieces of an exported file, cut out as small models of their own.

The file is loaded once; every piece is made of its own nodes and initializers, so what is tested is what is deployed.

    codes_piece:  input → (Clip →) QuantizeLinear
    layer_piece:  input → (Clip →) Q → DQ → MatMul (→ Mul) → Add
    unit_piece:   the same layer with every scale 1 and bias 0: codes in, integer accumulators out
    codes_to_product:  codes of two operands → DQ → movement → MatMul, likewise
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from erq_export.contract.errors import DataError
from erq_export.contract.manifest import LoweredOperand, LoweredSite, Quantized

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
IR_VERSION = 10
SAME_EXPORT = "model.onnx and manifest.json must be of the same export: export again"


def codes_piece(graph: ir.Graph, claim: Quantized) -> ir.Model:
    """input → codes, in the types of the file."""
    return cut(graph, [claim.input], [claim.codes], of=claim.path)


def layer_piece(graph: ir.Graph, claim: LoweredSite) -> ir.Model:
    """input → output, in the types of the file."""
    return cut(graph, [claim.input], [claim.output], of=claim.path)


def unit_piece(graph: ir.Graph, claim: LoweredSite) -> ir.Model:
    """The layer with scales 1, bias 0, Clip at qmin … qmax, in float32: it maps codes to Σ q·w.

    float32 also where the file has float16, which holds integers to 2¹¹ only.
    """
    piece = layer_piece(graph, claim)
    unit = {
        ("Clip", 1): claim.qmin,
        ("Clip", 2): claim.qmax,
        ("QuantizeLinear", 1): 1,
        ("DequantizeLinear", 1): 1,
        ("Mul", 1): 1,
        ("Add", 1): 0,
    }
    return _in_units(piece, unit)


def codes_to_product(graph: ir.Graph, operands: Sequence[LoweredOperand], output: str) -> ir.Model:
    """A product of attention from its operands' codes on, with every scale 1, in float32: it maps codes to Σ c·c′."""
    piece = cut(graph, [claim.codes for claim in operands], [output], of=output)
    return _in_units(piece, {("DequantizeLinear", 1): 1})


def _in_units(piece: ir.Model, unit: Mapping[tuple[str, int], int]) -> ir.Model:
    """The piece with float constants at (operator, input) replaced, and float32 wherever it had a float type."""
    for number, node in enumerate(piece.graph):
        for i, old in enumerate(node.inputs):
            if (node.op_type, i) in unit and old is not None and old.dtype in FLOATS:  # a Clip of codes stays
                array = np.full(array_of(old).shape, unit[node.op_type, i], np.float32)
                name = f"unit.{number}.{i}"
                new = ir.Value(name=name, const_value=ir.tensor(array, name=name))
                piece.graph.register_initializer(new)
                node.replace_input_with(i, new)
        for out in node.outputs:
            out.type = out.shape = None  # may say float16; whoever loads the piece infers them
    for value in (*piece.graph.inputs, *piece.graph.outputs):
        if value.dtype in (None, *FLOATS):
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for name in [n for n, v in piece.graph.initializers.items() if not v.uses()]:
        del piece.graph.initializers[name]
    return piece


def cut(graph: ir.Graph, first: Sequence[str], last: Sequence[str], *, of: str) -> ir.Model:
    """The nodes between the values `first` and `last`; DataError where there is no such piece."""
    try:
        piece = ir.convenience.extract(graph, first, last)
    except ValueError as e:
        raise DataError(
            f"{of}: the file has no such piece as its manifest says: {e}",
            fix=SAME_EXPORT,
        ) from e
    return ir.Model(piece, ir_version=IR_VERSION)


def serialized(piece: ir.Model) -> bytes:
    """The piece as one self-contained message: tensors that lie beside the file are read in."""
    ir.external_data.load_to_model(piece)
    return bytes(ir.to_proto(piece).SerializeToString())


def is_half(value: ir.Value) -> bool:
    """Is this value float16? TypeError where it is no float at all."""
    if value.dtype not in FLOATS:
        raise TypeError(f"{value.name} is {value.dtype}, expected float32 or float16")
    return value.dtype == ir.DataType.FLOAT16


def array_of(value: ir.Value) -> NDArray[np.generic]:
    """The constant behind an initializer."""
    if value.const_value is None:
        raise ValueError(f"{value.name} is not a constant")
    array: NDArray[np.generic] = value.const_value.numpy()
    return array
