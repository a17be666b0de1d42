"""Attention's operands and integer products, teacher-forced: the same input to the reference and to the exported file.

Letters:  x the operand that the reference computes;  c its codes less the zero point;  a = Σ c·c′ integer sums of a product
"""

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from erq_export.backends.onnxruntime import run, run_one, session
from erq_export.contract.errors import DataError
from erq_export.contract.manifest import AttentionOperator, LoweredOperand
from erq_export.contract.parity import AccumulatorParity, OperandParity, ProductParity
from erq_export.contract.quantized import QuantOperand

from ..metrics.distance import ROUNDING, relative_l2
from .executed import GEMMS, optimized_session
from .layers import EXACT, as_fed, check_codes
from .pieces import SAME_EXPORT, codes_to_product, cut, is_half, serialized

HALF_ROUNDING = 2.0**-11  # float16's unit roundoff: x̂ is a code times a scale, rounded once


@torch.no_grad()
def check_operand(graph: ir.Graph, claim: LoweredOperand, operand: QuantOperand, x: Tensor) -> OperandParity:
    """Codes and x̂ of the file's quantizer against `affine`, x rounded to the file's type first."""
    piece = cut(graph, [claim.input], [claim.output], of=claim.path)
    half = is_half(piece.graph.outputs[0])
    x = as_fed(x, piece)
    found = run_one(session(serialized(piece)), x).float()
    return OperandParity(
        path=claim.path,
        codes=check_codes(graph, claim, operand.grid, x),
        relative_l2=relative_l2(found, operand.forward(x.float())),
        limit=HALF_ROUNDING if half else ROUNDING,
    )


def products(operator: AttentionOperator) -> dict[str, tuple[str, str]]:
    """Both products by their node, each with its operands' paths."""
    path = operator.path
    return {
        operator.scores: (f"{path}.q", f"{path}.k"),
        operator.context: (f"{path}.softmax", f"{path}.v"),
    }


@torch.no_grad()
def check_product(
    graph: ir.Graph, node: str, claimed: tuple[LoweredOperand, LoweredOperand], codes: tuple[Tensor, Tensor]
) -> ProductParity:
    """A product of the file with unit scales, codes in and sums out, as ONNX Runtime optimizes it, against float32
    arithmetic on the same integers. Exact where Σ|c·c′| ≤ 2²⁴, which is bounded by the operands' largest codes.
    """
    values = {str(value.name): value for n in graph if n.name == node for value in n.outputs}
    if len(values) != 1:
        raise DataError(f"the file has no product {node!r}", fix=SAME_EXPORT)
    (output,) = values
    piece = serialized(codes_to_product(graph, claimed, output))
    feeds = {
        claim.codes: (c + claim.zero_point).to(getattr(torch, claim.container))
        for claim, c in zip(claimed, codes, strict=True)
    }
    deployed, nodes = optimized_session(piece)
    found, exact = (run(s, feeds)[output] for s in (deployed, session(piece, optimize=False)))
    inner = codes[1].shape[1] if codes[0].ndim == 4 else codes[0].shape[-1]  # T, or h·d ≥ d
    provable = float(codes[0].abs().max() * codes[1].abs().max()) * inner <= EXACT
    return ProductParity(
        path=node,
        sums=AccumulatorParity(
            n=found.numel() if provable else 0,
            mismatches=int((found != exact).sum()) if provable else 0,
            beyond=0 if provable else found.numel(),
        ),
        kernel="+".join(n.op_type for n in nodes if n.op_type in GEMMS),
        operands=tuple(claim.path for claim in claimed),
    )


class AttentionCheck:
    """Collects what `teach` shows of the operands, and compares a product as soon as both of its operands were seen."""

    def __init__(
        self,
        graph: ir.Graph,
        operators: Sequence[AttentionOperator],
        claimed: Mapping[str, LoweredOperand],
    ) -> None:
        self.graph, self.claimed = graph, claimed
        self.waiting = {
            node: pair for o in operators for node, pair in products(o).items() if all(p in claimed for p in pair)
        }
        self.codes: dict[str, Tensor] = {}
        self.operands: list[OperandParity] = []
        self.products: list[ProductParity] = []

    def see(self, path: str, operand: QuantOperand, x: Tensor) -> None:
        self.operands.append(check_operand(self.graph, self.claimed[path], operand, x))
        self.codes[path] = operand.grid.quantize(x.float())
        for node, pair in list(self.waiting.items()):
            if all(p in self.codes for p in pair):
                claimed, codes = zip(*((self.claimed[p], self.codes.pop(p)) for p in pair), strict=True)
                self.products.append(check_product(self.graph, node, claimed, codes))
                del self.waiting[node]
