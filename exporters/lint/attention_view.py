"""Attention as a graph spells it: softmax between two products of computed operands, and which of its sites are quantized."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from .view import AFFINE, DQ, FARTHEST, LAYOUT, MOVEMENT, Operand, Q, View, ahead, back, dims, is_constant, operand

_CUTS = frozenset({"Split", "Slice", "Gather"})
_LOGITS = MOVEMENT | AFFINE | {Q, DQ, "Where"}
_PROBABILITIES = MOVEMENT | {Q, DQ, "Clip", "Cast", "Mul", "Where"}


@dataclass(frozen=True, kw_only=True)
class Attention:
    """softmax(Q Kᵀ) V. `quantizers` are those that the output reaches before it is multiplied again."""

    softmax: ir.Node
    qk: ir.Node
    pv: ir.Node
    q: Operand
    k: Operand
    v: Operand
    p: Operand
    quantizers: tuple[ir.Node, ...]

    @property
    def sites(self) -> dict[str, bool]:
        """Which of the five sites of integer attention are quantized."""
        named = {"q": self.q, "k": self.k, "v": self.v, "softmax": self.p}
        return {n: site.dequantize is not None for n, site in named.items()} | {"output": bool(self.quantizers)}

    @property
    def integer(self) -> bool:
        return all(self.sites.values())

    @property
    def head_size(self) -> int | None:
        shape = dims(self.qk.inputs[0])
        return shape[-1] if shape else None

    @property
    def tokens(self) -> int | None:
        shape = dims(self.softmax.outputs[0])
        return shape[-1] if shape else None


def attentions(view: View) -> Iterator[Attention]:
    """Every one in the graph, in its order."""
    for softmax in view.of_type("Softmax"):
        qk = _logits(softmax.inputs[0])
        for pv in ahead(softmax.outputs[0], _PROBABILITIES):
            if qk is None or pv.op_type != "MatMul" or operand(pv.inputs[1]).constant:
                continue
            output = pv.outputs[0]
            yield Attention(
                softmax=softmax,
                qk=qk,
                pv=pv,
                q=operand(qk.inputs[0]),
                k=operand(qk.inputs[1]),
                v=operand(pv.inputs[1]),
                p=operand(pv.inputs[0]),
                quantizers=tuple(n for n in ahead(output, MOVEMENT | {"Clip", "Cast"}) if n.op_type == Q),
            )


def _logits(value: ir.Value | None) -> ir.Node | None:
    """The product of two computed operands behind a softmax: biases, masks and scales on the way are passed."""
    waiting = [value]
    seen: set[ir.Node] = set()
    while waiting and len(seen) <= FARTHEST:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "MatMul" and not operand(node.inputs[1]).constant:
            return node
        if node.op_type in _LOGITS:
            waiting.extend(v for v in node.inputs if not is_constant(v))
    return None


def projection(value: ir.Value | None) -> ir.Node | None:
    """The product with a constant weight that q, k or v is cut from behind a Reshape; None where it is quantized on the way,
    or cut before."""
    source, passed = back(value, MOVEMENT | AFFINE)
    node = source.producer() if source is not None else None
    first = next((n.op_type for n in reversed(passed) if n.op_type in LAYOUT | _CUTS), "")  # seen from the product
    return node if node is not None and node.op_type in ("MatMul", "Gemm") and first in LAYOUT else None
