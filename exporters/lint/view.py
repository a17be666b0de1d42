"""A graph as the rules see it: quantizers, products and what stands between them. Weights are never read.

A product is a MatMul, Gemm or Conv; its operands are followed back through data movement to the DequantizeLinear that
they come from.
"""

import functools
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .shown import shown

Q, DQ = "QuantizeLinear", "DequantizeLinear"
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
LAYOUT = frozenset({"Reshape", "Transpose", "Flatten"})
MOVEMENT = LAYOUT | {"Slice", "Squeeze", "Unsqueeze", "Gather", "Split", "Expand", "Identity", "Dropout"}
SCALING = frozenset({"Mul", "Div", "Clip", "Cast"})  # with a constant partner; behind an Add the codes are gone
AFFINE = SCALING | {"Add", "Sub"}
HALF = ir.DataType.FLOAT16
FARTHEST = 256  # nodes that are read through from one place; more than a handful is seen in damaged graphs alone


def named(node: ir.Node | None) -> str:
    """The node's name, its operator and outputs where it has none, "graph" for the graph itself."""
    if node is None:
        return "graph"
    return shown(node.name or f"{node.op_type} -> {', '.join(str(v.name) for v in node.outputs[:1])}")


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def array(value: ir.Value | None) -> NDArray[np.float64] | None:
    """A scale or zero point by value; None where it is left out or computed."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy()).astype(np.float64)


def integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape, None for each dimension that is not a number; None where the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def code_type(node: ir.Node) -> ir.DataType | None:
    """The integers that a quantizer writes or a dequantizer reads."""
    if node.op_type == DQ:
        return node.inputs[0].dtype if node.inputs[0] is not None else None
    zero = given(node, 2)
    if zero is not None:
        return zero.dtype
    return ir.DataType(integer(node, "output_dtype", 0) or ir.DataType.UINT8)


def per_channel(node: ir.Node) -> bool:
    """More than one scale; an unknown shape counts as one."""
    shape = dims(given(node, 1))
    return bool(shape) and shape != (1,)


def computed(node: ir.Node) -> ir.Value | None:
    """The input that is not a constant, where there is exactly one."""
    found = [value for value in node.inputs if value is not None and not is_constant(value)]
    return found[0] if len(found) == 1 else None


def back(value: ir.Value | None, through: Collection[str]) -> tuple[ir.Value | None, tuple[ir.Node, ...]]:
    """(the value that `value` comes from, the nodes of `through` between them); every node with one computed input."""
    passed: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and node.op_type in through:
        if len(passed) == FARTHEST:
            break
        source = node.inputs[0] if node.op_type in MOVEMENT else computed(node)
        if source is None:
            break
        passed.append(node)
        value = source
    return value, tuple(passed)


def ahead(value: ir.Value, through: Collection[str]) -> Iterator[ir.Node]:
    """The nodes that read `value`, with those of `through` read through."""
    waiting, seen, passed = [value], set(), 0
    while waiting:
        for use in waiting.pop().uses():
            if use.node in seen:
                continue
            seen.add(use.node)
            if use.node.op_type not in through:
                yield use.node
            elif passed < FARTHEST:
                passed += 1
                waiting.extend(use.node.outputs)


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One side of a product. `dequantize` is what it comes from, `between` the arithmetic on the way (normally none)."""

    dequantize: ir.Node | None
    between: tuple[ir.Node, ...]
    constant: bool

    @property
    def quantize(self) -> ir.Node | None:
        """The QuantizeLinear before the dequantizer; None where the integers are constants."""
        return quantize_of(self.dequantize)


def quantize_of(dequantize: ir.Node | None) -> ir.Node | None:
    """The quantizer whose codes a dequantizer reads, through data movement and integer Clips."""
    if dequantize is None:
        return None
    codes, _ = back(dequantize.inputs[0], MOVEMENT | {"Clip"})
    node = codes.producer() if codes is not None else None
    return node if node is not None and node.op_type == Q else None


def operand(value: ir.Value | None) -> Operand:
    source, passed = back(value, MOVEMENT | SCALING)
    node = source.producer() if source is not None else None
    if node is None or node.op_type != DQ:
        return Operand(dequantize=None, between=(), constant=is_constant(source))
    codes, _ = back(node.inputs[0], MOVEMENT | {"Clip", Q})
    between = tuple(n for n in passed if n.op_type in SCALING)
    return Operand(dequantize=node, between=between, constant=is_constant(codes))


@dataclass(frozen=True, kw_only=True)
class Product:
    """A multiplying node and its two operands."""

    node: ir.Node
    a: Operand
    b: Operand

    @property
    def bias(self) -> ir.Value | None:
        """The third operand of Gemm and Conv."""
        return None if self.node.op_type == "MatMul" else given(self.node, 2)

    @property
    def weight(self) -> Operand | None:
        """The side that is constant, where one is."""
        return self.b if self.b.constant else self.a if self.a.constant else None

    @property
    def data(self) -> Operand:
        """The side that is computed: the first one between two computed ones."""
        return self.a if self.b.constant or not self.a.constant else self.b

    @property
    def quantized(self) -> bool:
        return self.a.dequantize is not None and self.b.dequantize is not None

    @property
    def output_rank(self) -> int | None:
        shape = dims(self.node.outputs[0])
        return None if shape is None else len(shape)


def _place(numbered: tuple[int, ir.Node]) -> int:
    return numbered[0]


@dataclass(frozen=True, kw_only=True)
class View:
    """The model, its nodes with those of subgraphs, and what is found in it once."""

    model: ir.Model

    @functools.cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        return tuple(ir.traversal.RecursiveGraphIterator(self.model.graph))

    @functools.cached_property
    def _by_type(self) -> dict[str, list[tuple[int, ir.Node]]]:
        """Nodes of one operator with their places in `nodes`."""
        found: dict[str, list[tuple[int, ir.Node]]] = {}
        for i, node in enumerate(self.nodes):
            found.setdefault(node.op_type, []).append((i, node))
        return found

    def of_type(self, *operators: str) -> Iterator[ir.Node]:
        """In the order of the graph."""
        parts = [self._by_type[name] for name in operators if name in self._by_type]
        return (node for _, node in (parts[0] if len(parts) == 1 else sorted(itertools.chain(*parts), key=_place)))

    @functools.cached_property
    def quantizers(self) -> tuple[ir.Node, ...]:
        """Q and DQ."""
        return tuple(self.of_type(Q, DQ))

    @functools.cached_property
    def activation_quantizers(self) -> tuple[ir.Node, ...]:
        """Q of what is computed."""
        return tuple(node for node in self.of_type(Q) if not is_constant(back(node.inputs[0], MOVEMENT)[0]))

    @functools.cached_property
    def pairs(self) -> tuple[tuple[ir.Node, ir.Node], ...]:
        """(Q, DQ that reads its codes)."""
        found = ((quantize_of(node), node) for node in self.of_type(DQ))
        return tuple((q, dq) for q, dq in found if q is not None)

    @functools.cached_property
    def products(self) -> tuple[Product, ...]:
        return tuple(
            Product(node=node, a=operand(given(node, 0)), b=operand(given(node, 1))) for node in self.of_type(*PRODUCTS)
        )
