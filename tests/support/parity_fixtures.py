"""A quantized transformer of one block for tests of parity: made by hand, exported, and damaged on purpose.

Letters:  B images of 3 × 16 × 16;  T = 16 patches of 4 × 4;  d = 32 channels
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from erq_export.contract.formats.affine import (
    asymmetric_grid,
    common_power,
    snap_to_half,
    snap_to_ratio,
    symmetric_grid,
)
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.part import install
from erq_export.contract.quantized import QuantizedLayer
from erq_export.contract.targets import named
from erq_export.exporters.onnx.graph import name_by_module
from erq_export.exporters.onnx.trace import trace
from erq_export.exporters.onnx.write import lowered, save
from erq_export.models.family import PatchTokens

D, CLASSES, SIZE = 32, 5, (3, 16, 16)
PATHS = ("patch.proj", "qkv", "proj", "fc1", "fc2", "head")


class Block(nn.Module):
    """Patches, attention with one head, MLP, mean over patches, head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = PatchTokens(nn.Conv2d(3, D, 4, stride=4), nn.Identity())
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.fc1, self.fc2 = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.head = nn.Linear(D, CLASSES)
        for norm in (self.norm1, self.norm2):  # else both are 1 and 0, and the exporter stores one for both
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)  # (B, T, d)
        q, k, v = self.qkv(self.norm1(x)).split(D, dim=-1)  # (B, T, d) each
        x = x + self.proj((q @ k.transpose(1, 2) / math.sqrt(D)).softmax(-1) @ v)
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))  # (B, classes)


def images(n: int, *, seed: int = 5) -> Tensor:
    return torch.randn(n, *SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def quantized(model: nn.Module, paths: tuple[str, ...], pixels: Tensor, *, bits: int = 4) -> dict[str, QuantizedLayer]:
    """Round to nearest, ranges from `pixels`; installs the layers in the model. The first layer's input has 8 bits."""
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(path: str) -> Callable[..., None]:
        return lambda _module, args: ranges.update({path: (args[0].min(), args[0].max())})

    handles = [model.get_submodule(p).register_forward_pre_hook(hook(p)) for p in paths]
    model(pixels)
    for handle in handles:
        handle.remove()
    layers = {}
    for path in paths:
        linear = model.get_submodule(path)
        weight = linear.weight.detach()  # (n, k)
        lo, hi = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        s0 = common_power(symmetric_grid(lo, hi, bits).scale)
        grid = symmetric_grid(lo, hi, bits, snap=lambda s, s0=s0: snap_to_ratio(s, s0))
        first = path == paths[0]
        make, a_bits = (symmetric_grid, 8) if first else (asymmetric_grid, bits)
        layers[path] = QuantizedLayer(
            weight_q=grid.quantize(weight).to(torch.int8),
            weight_scale=grid.scale[:, 0],
            weight_qmin=grid.qmin[:, 0].to(torch.int16),
            bias=linear.bias.detach().half().float(),
            act=make(*ranges[path], a_bits, snap=snap_to_half),
            w_bits=bits,
            a_bits=a_bits,
        )
    for path, layer in layers.items():
        install(model, path, layer)
    return layers


@dataclass(frozen=True)
class Exported:
    """One target's file with everything that it is compared with."""

    reference: nn.Module
    layers: dict[str, QuantizedLayer]
    path: Path
    manifest: GraphManifest


def exported(folder: Path, *targets: str) -> dict[str, Exported]:
    """The block, quantized to 4 bits, as a file for each target."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Block().eval().requires_grad_(False)
    layers = quantized(model, PATHS, images(8, seed=1))
    return lower_to(folder, model, layers, SIZE, *targets)


def lower_to(
    folder: Path, model: nn.Module, layers: dict[str, QuantizedLayer], size: tuple[int, int, int], *targets: str
) -> dict[str, Exported]:
    """One trace of a quantized model, one file for each target."""
    markers = trace(model, size)
    name_by_module(markers)
    files = {}
    for target in targets:
        graph, manifest = lowered(markers, named(target), None)
        path = folder / f"{target}.onnx"
        save(graph, path)
        files[target] = Exported(model, layers, path, manifest)
    return files


def damaged(path: Path, to: Path, change: Callable[[ir.Graph], None]) -> Path:
    """A copy of the file with a changed graph."""
    model = ir.load(path)
    change(model.graph)
    ir.save(model, to)
    return to


def constant(graph: ir.Graph, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Change an initializer, which keeps its type."""
    value = graph.initializers[name]
    old = value.const_value.numpy()
    value.const_value = ir.tensor(np.asarray(change(old.copy())).astype(old.dtype), name=name)


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> None:
    """Add an initializer that nothing uses."""
    tensor = ir.tensor(array, name=name)
    graph.register_initializer(
        ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    )
