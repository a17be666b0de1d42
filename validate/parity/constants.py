"""The numbers beside the weights, as the file has them: scales, zero points, Clips, biases, LayerNorms.

A scale that is off by its last digit moves hardly a code, and no comparison of outputs shows it; a number can be compared as
a number. What is expected comes from the bundle and the reference, never from the manifest, cast to the file's own type.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from erq_export.contract.constant_parity import ConstantDifference, ConstantName, ConstantParity, OriginParity
from erq_export.contract.floor import LARGEST
from erq_export.contract.formats.affine import Grid
from erq_export.contract.manifest import GraphManifest, LoweredSite, Quantized
from erq_export.contract.quantized import QuantizedLayer, QuantOperand

from .pieces import array_of

Array = NDArray[np.generic]
BUNDLE_KEY = "erq.bundle_sha256"  # of the file's metadata


def check_origin(model: ir.Model, manifest: GraphManifest, bundle: str | None) -> OriginParity:
    """Which calibration the graph says that it comes from; bundle: the hash of the one that it is held against."""
    named = manifest.origin.bundle_sha256 if manifest.origin is not None else None
    return OriginParity(bundle=bundle, manifest=named, file=model.metadata_props.get(BUNDLE_KEY))


def check_constants(
    graph: ir.Graph,
    claimed: Mapping[str, Quantized],
    layers: Mapping[str, QuantizedLayer],
    reference: nn.Module,
) -> ConstantParity:
    """Every claimed layer's and operand's numbers, and those of the LayerNorms that the file names."""
    book = _Book(graph)
    for path, claim in claimed.items():
        module = reference.get_submodule(path)
        if isinstance(claim, LoweredSite) and path in layers:
            book.quantizer(claim, layers[path].act)
            book.weight(claim, layers[path])
        elif isinstance(module, QuantOperand):
            book.quantizer(claim, module.grid, softmax=module.role == "softmax")
    for path, module in reference.named_modules():
        if isinstance(module, nn.LayerNorm):
            book.norm(path, module)
    return ConstantParity(n=book.n, different=tuple(book.different))


@dataclass
class _Book:
    """The file's nodes by what they make and by name, and what was compared so far."""

    graph: ir.Graph
    n: int = 0
    different: list[ConstantDifference] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.makers = {str(value.name): node for node in self.graph for value in node.outputs}
        self.named = {str(node.name): node for node in self.graph}
        self.values = {str(value.name): value for node in self.graph for value in node.outputs}

    def compare(self, path: str, name: ConstantName, found: Array | None, expected: Array) -> None:
        """Equal as numbers, in the file's type."""
        self.n += 1
        if found is None:
            self._differ(path, name, 1, 1, None, float(expected.flat[0]))
            return
        want = np.broadcast_to(expected.astype(found.dtype), np.broadcast_shapes(found.shape, expected.shape))
        have = np.broadcast_to(found, want.shape)
        wrong = np.flatnonzero((have != want).reshape(-1))
        if len(wrong):
            value = float(have.reshape(-1)[wrong[0]])
            value = value if np.isfinite(value) else LARGEST
            self._differ(path, name, want.size, len(wrong), value, float(want.reshape(-1)[wrong[0]]))

    def _differ(self, path: str, name: ConstantName, n: int, wrong: int, found: float | None, expected: float) -> None:
        self.different.append(
            ConstantDifference(path=path, name=name, n=n, mismatches=wrong, found=found, expected=expected)
        )

    def quantizer(self, claim: Quantized, grid: Grid, *, softmax: bool = False) -> None:
        """Clip, scale and zero point between input and codes; scale behind the codes."""
        qmin, qmax = grid.codes
        s = grid.scale.numpy()
        held = torch.iinfo(getattr(torch, claim.container))
        zero = np.asarray(-qmin if claim.container == "uint8" else 0)
        nodes = list(self._back(claim.codes, claim.input))
        clip = next((node for node in nodes if node.op_type == "Clip"), None)
        first, last = qmin + int(zero), qmax + int(zero)
        narrow = (first, last) != (held.min, held.max)
        if softmax and qmin <= 0 and np.rint(1 / np.float64(s)) <= qmax:
            narrow = False  # probabilities lie on the grid, from 0 to 1
        if clip is not None:
            codes = clip.outputs[0].name == claim.codes
            for i, (code, bound) in enumerate(((qmin, first), (qmax, last)), start=1):
                self.compare(claim.path, "clip", self._constant(clip, i), np.asarray(bound if codes else code * s))
        elif narrow:
            self.compare(claim.path, "clip", None, np.asarray(qmax * s))
        quantizer = next((node for node in nodes if node.op_type == "QuantizeLinear"), None)
        self.compare(claim.path, "input scale", self._constant(quantizer, 1), s)
        self.compare(claim.path, "zero point", self._constant(quantizer, 2), zero)
        behind = next((n for n in self._readers(claim.codes) if n.op_type == "DequantizeLinear"), None)
        self.compare(claim.path, "dequantizer scale", self._constant(behind, 1), s)
        self.compare(claim.path, "zero point", self._constant(behind, 2), zero)

    def weight(self, claim: LoweredSite, layer: QuantizedLayer) -> None:
        """s_w as the weight's DequantizeLinear and the Mul behind the product hold it together, and the bias."""
        gemm = self.named.get(claim.gemm)
        maker = None if gemm is None or gemm.inputs[1] is None else self.makers.get(str(gemm.inputs[1].name))
        scale = self._constant(maker, 1)
        nodes = [] if gemm is None else list(self._back(claim.output, str(gemm.outputs[0].name)))
        for node in nodes:
            if node.op_type == "Mul" and scale is not None and (ratio := self._constant(node, 1)) is not None:
                scale = scale.astype(np.float32) * ratio.astype(np.float32)
        self.compare(claim.path, "weight scale", scale, layer.weight_scale.numpy())
        bias = next((self._constant(node, 1) for node in nodes if node.op_type == "Add"), None)
        self.compare(claim.path, "bias", bias, layer.bias.numpy())

    def norm(self, path: str, module: nn.LayerNorm) -> None:
        """Nothing where the file has no such node: what reaches the next layer is compared anyway."""
        node = self.named.get(f"{path}/LayerNormalization")
        if node is None:
            return
        given = node.attributes.get("epsilon")
        epsilon = np.asarray(1e-5 if given is None else given.as_float(), np.float32)
        self.compare(path, "epsilon", epsilon, np.asarray(module.eps, np.float32))
        for name, i, tensor in (("norm weight", 1, module.weight), ("norm bias", 2, module.bias)):
            if (found := self._constant(node, i)) is not None and tensor is not None:
                self.compare(path, name, found, tensor.detach().numpy())  # type: ignore[arg-type]

    def _back(self, last: str, first: str) -> Iterator[ir.Node]:
        """From the maker of `last` along first inputs to the reader of `first`, a few nodes at most."""
        for _ in range(8):
            node = self.makers.get(last)
            if last == first or node is None or node.inputs[0] is None:
                return
            yield node
            last = str(node.inputs[0].name)

    def _readers(self, name: str) -> list[ir.Node]:
        return [use.node for use in self.values[name].uses()] if name in self.values else []

    def _constant(self, node: ir.Node | None, i: int) -> Array | None:
        """The node's i-th input where it is a constant of the file."""
        if node is None or len(node.inputs) <= i:
            return None
        value = node.inputs[i]
        return None if value is None or value.const_value is None else array_of(value)
