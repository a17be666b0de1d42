"""One layer, teacher-forced: the same input to the reference's layer and to its piece of the exported file.

Letters:  x (…, k) the input that the reference's layer gets;  q (…, k) its integer codes;  w (n, k) integer weight
          a = Σ q·w (…, n) integer accumulators;  y (…, n) output.  Of a convolution x is (B, c, H, W), y (B, n, H′, W′).
The input is rounded to the type that the file has there before either side sees it.
"""

import onnx_ir as ir
import torch
from torch import Tensor

from erq_export.backends.onnxruntime import run_one, session
from erq_export.contract.formats.affine import Grid
from erq_export.contract.manifest import LoweredSite, Quantized
from erq_export.contract.parity import AccumulatorParity, CodeParity, LayerParity, OutputParity
from erq_export.contract.quantized import QuantLayer

from ..metrics.distance import ROUNDING, relative_l2, relative_max
from .executed import GEMMS, optimized_session
from .pieces import codes_piece, is_half, layer_piece, serialized, unit_piece

HALF_ROUNDING = 2e-3  # float16 has unit roundoff 2⁻¹¹ ≈ 5e-4; x̂, the product, its ratio and the sum each round once
EXACT = 2.0**24  # float32 holds every integer up to here


@torch.no_grad()
def check_layer(graph: ir.Graph, claim: LoweredSite, layer: QuantLayer, x: Tensor) -> LayerParity:
    """Levels 1 and 2 of docs/backends.md, "Parity" for one layer of the file, on the CPU: codes, integer accumulators,
    output."""
    return LayerParity(
        path=claim.path,
        codes=check_codes(graph, claim, layer.grid, x),
        accumulators=check_accumulators(graph, claim, layer, x),
        output=check_output(graph, claim, layer, x),
    )


def check_codes(graph: ir.Graph, claim: Quantized, grid: Grid, x: Tensor) -> CodeParity:
    """Codes of the file's quantizer, less its zero point, against `affine.quantize`."""
    piece = codes_piece(graph, claim)
    x = as_fed(x, piece)
    codes = run_one(session(serialized(piece)), x).reshape(x.shape).float() - claim.zero_point  # (…, k)
    difference = (codes - grid.quantize(x.float())).abs()
    return CodeParity(
        n=difference.numel(), mismatches=int(difference.count_nonzero()), max_lsb=int(difference.max().item())
    )


def check_accumulators(graph: ir.Graph, claim: LoweredSite, layer: QuantLayer, x: Tensor) -> AccumulatorParity:
    """The kernel's integer arithmetic: the piece with unit scales, fed with codes, against exact products.

    float64 holds every sum exactly; float32, in the file, wherever Σ|q·w| ≤ 2²⁴, by any kernel and in any order.
    """
    q, w = layer.grid.quantize(x), layer.weight_q.double()  # (…, k), (n, k)
    deployed = session(serialized(unit_piece(graph, claim)))
    found, exact = run_one(deployed, q).double(), layer.product(q.double(), w)  # (…, n)
    provable = layer.product(q.double().abs(), w.abs()) <= EXACT
    return AccumulatorParity(
        n=int(provable.sum()), mismatches=int(((found != exact) & provable).sum()), beyond=int((~provable).sum())
    )


def check_output(graph: ir.Graph, claim: LoweredSite, layer: QuantLayer, x: Tensor) -> OutputParity:
    """The whole layer in the file's types, optimized as in deployment, against the reference's layer."""
    piece = layer_piece(graph, claim)
    half = is_half(piece.graph.outputs[0])
    x = as_fed(x, piece)
    deployed, nodes = optimized_session(serialized(piece))
    found, want = run_one(deployed, x).float(), layer.forward(x.float())  # (…, n)
    return OutputParity(
        relative_l2=relative_l2(found, want),
        relative_max=relative_max(found, want),
        limit=HALF_ROUNDING if half else ROUNDING,
        kernel="+".join(node.op_type for node in nodes if node.op_type in GEMMS),
    )


def as_fed(x: Tensor, piece: ir.Model) -> Tensor:
    """x rounded to the type of the piece's input."""
    return x.half() if is_half(piece.graph.inputs[0]) else x.float()
