"""Between the quantized layers: the file's float operators, fed with the reference's own layer outputs.

Letters:  x the input that a layer or operand of the reference gets;  y what it returns

The file is cut at every layer and every quantized operand of attention: {pixels, all y} → {all x, logits}. No quantizer
is left in that piece, so LayerNorm, softmax, GELU, attention's products and whatever else stands there must agree up to
rounding. The whole model as it runs cannot show this: its noise floor is far above.
"""

from collections.abc import Mapping

import onnx_ir as ir
from torch import Tensor, nn

from erq_export.backends.onnxruntime import run, session
from erq_export.contract.manifest import Quantized
from erq_export.contract.parity import FloatParity

from ..metrics.distance import ROUNDING, relative_l2
from .pieces import cut, is_half, serialized
from .teacher import teach

HALF_ROUNDING = 5e-3  # float16: each sum of the residual stream rounds by 2⁻¹¹, the softmax by that times a logit


def check_float(reference: nn.Module, graph: ir.Graph, claimed: Mapping[str, Quantized], pixels: Tensor) -> FloatParity:
    """Compare the input of every claimed layer and operand.

    Memory: inputs and outputs of all of them at once, so give it one image.
    """
    x: dict[str, Tensor] = {}
    y: dict[str, Tensor] = {}

    def keep(path: str, x_layer: Tensor, y_layer: Tensor) -> None:
        x[path], y[path] = x_layer, y_layer

    logits = teach(reference, pixels, keep)
    (image,), (last,) = graph.inputs, graph.outputs
    given = {str(image.name): pixels} | {c.output: y[path] for path, c in claimed.items() if c.output != last.name}
    wanted = {c.input: (path, x[path]) for path, c in claimed.items() if c.input not in given}
    if last.name not in {c.output for c in claimed.values()}:
        wanted[str(last.name)] = ("logits", logits)
    return float_parity(graph, given, wanted)


def float_parity(graph: ir.Graph, given: Mapping[str, Tensor], wanted: Mapping[str, tuple[str, Tensor]]) -> FloatParity:
    """The piece between these values of the file, which must hold no quantizer: tensor → what it is given, and tensor → what
    it is called and should be."""
    piece = cut(graph, list(given), list(wanted), of="the float part")
    half = any(is_half(value) for value in piece.graph.inputs)
    feeds = {str(v.name): given[str(v.name)].half() if is_half(v) else given[str(v.name)] for v in piece.graph.inputs}
    found = run(session(serialized(piece)), feeds)
    return FloatParity(
        relative_l2={name: relative_l2(found[key].float(), want) for key, (name, want) in wanted.items()},
        limit=HALF_ROUNDING if half else ROUNDING,
    )
