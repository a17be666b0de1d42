"""What is needed to see one difference again: the piece of the graph, the reference's input to it, expected and found outputs.

For one image, the first of those given that shows it. Bounded: of an output that is larger than `KEPT` numbers a stretch around
the largest difference is kept, and no tensor at all where the inputs are larger than `LARGEST_INPUT` bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import Tensor, nn

from erq_export.backends.onnxruntime import run, session
from erq_export.contract.bisection import Difference
from erq_export.contract.manifest import GraphManifest, LoweredOperand, LoweredSite, Quantized, by_path
from erq_export.contract.parity import ParityReport
from erq_export.contract.quantized import QuantLinear, QuantOperand, quant_operands

from .attention import products
from .blocks import blocks_of, inputs_of
from .pieces import codes_piece, codes_to_product, cut, is_half, layer_piece, serialized, unit_piece
from .teacher import teach

KEPT = 2**22  # numbers of an output
LARGEST_INPUT = 2**26  # bytes
QUANTIZER = ("clip", "input scale", "zero point", "codes")
NORM = ("epsilon", "norm weight", "norm bias")


@dataclass(frozen=True)
class Reproduction:
    """piece: a model of its own;  inputs, expected, found by the names of its values, outputs flat from `offset` on."""

    piece: bytes
    inputs: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    found: Mapping[str, Tensor]
    offset: Mapping[str, int] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """As they are written: "input/NAME" and so on."""
        groups = {"input": self.inputs, "expected": self.expected, "found": self.found}
        offsets = {f"offset/{name}": torch.tensor(at) for name, at in self.offset.items()}
        return {f"{group}/{name}": t for group, tensors in groups.items() for name, t in tensors.items()} | offsets


@torch.no_grad()
def reproduction(
    reference: nn.Module,
    file: ir.Model,
    manifest: GraphManifest,
    report: ParityReport,
    first: Difference,
    pixels: Tensor,
) -> Reproduction | None:
    """None where no piece of the file shows it: another calibration's file, a site that the file has not, decisions."""
    shown: Reproduction | None = None
    for i in range(len(pixels)):
        kept = _reproduction(reference, file, manifest, report, first, pixels[i : i + 1])
        if kept is None:
            return None
        shown = shown or kept
        if any(not torch.equal(kept.found[name].float(), y.float()) for name, y in kept.expected.items()):
            shown = kept
            if _beyond(kept, first):
                break
    return shown


def _beyond(kept: Reproduction, first: Difference) -> bool:
    """Is the difference on this image as large as the bound that it breaks? Of constants none is asked."""
    if first.bound is None or first.kind in ("codes", "sums", "weight integers"):
        return True
    error = sum(float((kept.found[n].double() - y.double()).square().sum()) for n, y in kept.expected.items())
    size = sum(float(y.double().square().sum()) for y in kept.expected.values())
    return not error <= first.bound**2 * size


def _reproduction(
    reference: nn.Module,
    file: ir.Model,
    manifest: GraphManifest,
    report: ParityReport,
    first: Difference,
    pixels: Tensor,
) -> Reproduction | None:
    graph, claimed = file.graph, {**by_path(manifest.sites), **by_path(manifest.operands)}
    if first.kind == "block output":
        return _block(reference, graph, claimed, first.block, pixels)
    if first.kind in NORM:
        return _norm(reference, graph, first.site, pixels)
    if first.kind in ("whole model", "float operators") and not first.site:
        (image,), (logits,) = graph.inputs, graph.outputs
        return _ran(file, {str(image.name): pixels}, {str(logits.name): reference(pixels)})
    claim = claimed.get(first.site)
    if claim is None:
        return None
    if first.kind == "float operators":
        return _between(reference, graph, claimed, first.site, pixels)
    x: dict[str, Tensor] = {}
    teach(reference, pixels, lambda path, given, _y: x.update({path: given}))
    module = reference.get_submodule(first.site)
    if isinstance(claim, LoweredSite) and isinstance(module, QuantLinear):
        return _layer(graph, claim, module, first, x[first.site])
    if isinstance(claim, LoweredOperand) and isinstance(module, QuantOperand):
        return _operand(reference, graph, manifest, report, claim, module, first, x)
    return None


def _layer(
    graph: ir.Graph, claim: LoweredSite, layer: QuantLinear, first: Difference, x: Tensor
) -> Reproduction | None:
    if first.kind in QUANTIZER:
        return _codes(graph, claim, layer, x)
    if first.kind in ("weight integers", "sums"):
        q = layer.grid.quantize(x)
        return _ran(unit_piece(graph, claim), {claim.input: q}, {claim.output: q @ layer.weight_q.float().T})
    piece = layer_piece(graph, claim)
    return _ran(piece, {claim.input: x}, {claim.output: layer.forward(_as_fed(piece, claim.input, x).float())})


def _operand(
    reference: nn.Module,
    graph: ir.Graph,
    manifest: GraphManifest,
    report: ParityReport,
    claim: LoweredOperand,
    operand: QuantOperand,
    first: Difference,
    x: Mapping[str, Tensor],
) -> Reproduction | None:
    if first.kind in QUANTIZER:
        return _codes(graph, claim, operand, x[claim.path])
    if first.kind != "sums":
        piece = cut(graph, [claim.input], [claim.output], of=claim.path)
        fed = _as_fed(piece, claim.input, x[claim.path]).float()
        return _ran(piece, {claim.input: x[claim.path]}, {claim.output: operand.forward(fed)})
    wrong = next(p for p in report.products if p.sums.mismatches and claim.path in p.operands)
    pairs = {node: pair for o in manifest.attention_operators for node, pair in products(o).items()}
    claims = [by_path(manifest.operands)[path] for path in pairs[wrong.path]]
    (output,) = (str(value.name) for node in graph if node.name == wrong.path for value in node.outputs)
    codes = {}
    for one in claims:
        grid = quant_operands(reference)[one.path].grid
        codes[one.codes] = (grid.quantize(x[one.path].float()) + one.zero_point).to(getattr(torch, one.container))
    piece = codes_to_product(graph, claims, output)
    exact = run(session(serialized(piece), optimize=False), codes)
    return _ran(piece, codes, exact)


def _codes(graph: ir.Graph, claim: Quantized, module: QuantLinear | QuantOperand, x: Tensor) -> Reproduction:
    """The expected codes have the zero point that the calibrated grid asks for."""
    piece = codes_piece(graph, claim)
    zero = -module.grid.codes[0] if claim.container == "uint8" else 0
    codes = module.grid.quantize(_as_fed(piece, claim.input, x).float()) + zero
    return _ran(piece, {claim.input: x}, {claim.codes: codes.to(getattr(torch, claim.container))})


def _norm(reference: nn.Module, graph: ir.Graph, path: str, pixels: Tensor) -> Reproduction | None:
    norm = reference.get_submodule(path)
    node = next((node for node in graph if node.name == f"{path}/LayerNormalization"), None)
    if node is None or node.inputs[0] is None:
        return None
    x: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _module, args: x.append(args[0]))
    try:
        reference(pixels)
    finally:
        handle.remove()
    given, out = str(node.inputs[0].name), str(node.outputs[0].name)
    return _ran(cut(graph, [given], [out], of=path), {given: x[0]}, {out: norm(x[0])})


def _between(
    reference: nn.Module, graph: ir.Graph, claimed: Mapping[str, Quantized], site: str, pixels: Tensor
) -> Reproduction:
    """From the outputs of the layers and operands before it to the input of the site."""
    x: dict[str, Tensor] = {}
    y: dict[str, Tensor] = {}

    def keep(path: str, given: Tensor, out: Tensor) -> None:
        x[path], y[path] = given, out

    teach(reference, pixels, keep)
    (image,), (last,) = graph.inputs, graph.outputs
    given = {str(image.name): pixels} | {c.output: y[p] for p, c in claimed.items() if p in y and c.output != last.name}
    wanted = claimed[site].input
    return _ran(cut(graph, list(given), [wanted], of=site), given, {wanted: x[site]})


def _block(
    reference: nn.Module, graph: ir.Graph, claimed: Mapping[str, Quantized], path: str, pixels: Tensor
) -> Reproduction | None:
    for block, x in inputs_of(blocks_of(reference, graph, claimed, pixels), pixels):
        if block.path == path:
            piece = cut(graph, [block.first], [block.last], of=path)
            return _ran(piece, {block.first: x}, {block.last: block.forward(_as_fed(piece, block.first, x).float())})
    return None


def _as_fed(piece: ir.Model, name: str, x: Tensor) -> Tensor:
    """x in the type that the piece takes: rounded where that is float16."""
    value = next(value for value in piece.graph.inputs if value.name == name)
    if not x.is_floating_point():
        return x
    return x.half() if is_half(value) else x.float()


def _ran(piece: ir.Model, inputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Reproduction:
    """The piece's own outputs beside what is expected; inputs that it does not read are left out."""
    for value in [value for value in piece.graph.inputs if not value.uses()]:
        piece.graph.inputs.remove(value)
    read = [str(value.name) for value in piece.graph.inputs]
    fed = {name: _as_fed(piece, name, inputs[name]) for name in read}
    model = serialized(piece)
    found = run(session(model), fed)
    if sum(x.nbytes for x in fed.values()) > LARGEST_INPUT:
        return Reproduction(model, {}, {}, {})
    kept: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    offset = {}
    for name, y in expected.items():
        want, have = y.flatten(), found[name].flatten()
        at = 0
        if len(want) > KEPT:
            worst = int((have.double() - want.double()).abs().nan_to_num(nan=torch.inf).argmax())
            at = max(0, min(worst - KEPT // 2, len(want) - KEPT))
        kept[0][name], kept[1][name], offset[name] = want[at : at + KEPT], have[at : at + KEPT], at
    return Reproduction(model, fed, *kept, offset)
