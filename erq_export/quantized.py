"""The model with its quantization sites: rebuilt from a bundle it is the fake-quant reference, under export it emits markers.

Letters:  B images;  T tokens;  k inputs, n outputs of a layer;  x̂ the input on its grid;  q integers
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erq_export.affine import Grid, fake_quantize

MARKER_DOMAIN = "erq"
MARKER = "QuantLinear"
OPERAND_MARKER = "QuantOperand"


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """One layer's integers and grids, all float leftovers float32.

    weight_q (n, k) int8: the weight is weight_q · weight_scale[:, None];  weight_scale (n,);  bias (n,);
    weight_qmin (n,) int16: the row's grid is weight_qmin … weight_qmin + 2^w − 1;
    act: the per-tensor grid of the input, scale and bounds of shape ().
    """

    weight_q: Tensor
    weight_scale: Tensor
    weight_qmin: Tensor
    bias: Tensor
    act: Grid
    w_bits: int
    a_bits: int

    @property
    def weight(self) -> Tensor:
        """The dequantized weight (n, k) float32."""
        return self.weight_q.float() * self.weight_scale[:, None]


@dataclass(frozen=True, kw_only=True)
class QuantizedOperand:
    """One operand of attention (q, k, v or the softmax): its per-tensor grid, scale and bounds of shape ()."""

    grid: Grid
    bits: int
    role: str


Part = TypeVar("Part", QuantizedLayer, QuantizedOperand)


class QuantLinear(nn.Module):
    """y = Ŵ x̂ + b with x̂ = fake_quantize(x): float32 arithmetic on integers times scales."""

    def __init__(self, path: str, layer: QuantizedLayer) -> None:
        super().__init__()
        self.path, self.w_bits, self.a_bits = path, layer.w_bits, layer.a_bits
        self.weight_q: Tensor
        self.weight_scale: Tensor
        self.bias: Tensor
        self.act_scale: Tensor
        self.act_qmin, self.act_qmax = int(layer.act.qmin.item()), int(layer.act.qmax.item())
        self.register_buffer("weight_q", layer.weight_q)  # (n, k) int8
        self.register_buffer("weight_scale", layer.weight_scale)  # (n,)
        self.register_buffer("bias", layer.bias)  # (n,)
        self.register_buffer("act_scale", layer.act.scale)  # ()

    @property
    def grid(self) -> Grid:
        """The input's grid, on the module's device."""
        bound = torch.full_like
        return Grid(
            scale=self.act_scale,
            qmin=bound(self.act_scale, self.act_qmin),
            qmax=bound(self.act_scale, self.act_qmax),
        )

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return self._marker(x)
        x_hat = fake_quantize(x, self.grid)  # (…, k)
        return F.linear(x_hat, self.weight_q.float() * self.weight_scale[:, None], self.bias)  # (…, n)

    def _marker(self, x: Tensor) -> Tensor:
        """One operator that carries the whole layer; each target's lowering writes its own Q/DQ for it."""
        return torch.onnx.ops.symbolic(
            f"{MARKER_DOMAIN}::{MARKER}",
            (x, self.weight_q, self.weight_scale, self.bias, self.act_scale),
            attrs={"qmin": self.act_qmin, "qmax": self.act_qmax, "w_bits": self.w_bits, "a_bits": self.a_bits},
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.weight_q.shape[0]),
            version=1,
            metadata_props={"erq.path": self.path},
        )


class QuantOperand(nn.Module):
    """x̂ = fake_quantize(x), any shape; takes the place of an `Operand` and, like it, ignores `beside`."""

    def __init__(self, path: str, operand: QuantizedOperand) -> None:
        super().__init__()
        self.path, self.role, self.bits = path, operand.role, operand.bits
        self.scale: Tensor
        self.qmin, self.qmax = int(operand.grid.qmin.item()), int(operand.grid.qmax.item())
        self.register_buffer("scale", operand.grid.scale)  # ()

    @property
    def grid(self) -> Grid:
        """The operand's grid, on the module's device."""
        bound = torch.full_like
        return Grid(scale=self.scale, qmin=bound(self.scale, self.qmin), qmax=bound(self.scale, self.qmax))

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:  # noqa: ARG002 - an Operand's signature
        if torch.onnx.is_in_onnx_export():
            return self._marker(x)
        return fake_quantize(x, self.grid)

    def _marker(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{MARKER_DOMAIN}::{OPERAND_MARKER}",
            (x, self.scale),
            attrs={"qmin": self.qmin, "qmax": self.qmax, "bits": self.bits, "role": self.role},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
            metadata_props={"erq.path": self.path},
        )


def on_cpu(part: Part) -> Part:
    """The same layer or operand with its tensors on the CPU, where bundles live."""
    moved: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.cpu()
        elif isinstance(value, Grid):
            moved[field.name] = value.map(Tensor.cpu)
    return replace(part, **moved)


def install(model: nn.Module, path: str, layer: QuantizedLayer | QuantizedOperand) -> None:
    """Put a QuantLinear, or a QuantOperand, in the place of the module at `path`."""
    parent, _, name = path.rpartition(".")
    module = QuantLinear(path, layer) if isinstance(layer, QuantizedLayer) else QuantOperand(path, layer)
    setattr(model.get_submodule(parent), name, module)


def quant_linears(model: nn.Module) -> dict[str, QuantLinear]:
    """Every quantized layer by its path, in the model's order."""
    return {m.path: m for m in model.modules() if isinstance(m, QuantLinear)}


def quant_operands(model: nn.Module) -> dict[str, QuantOperand]:
    """Every quantized operand of attention by its path, in the model's order."""
    return {m.path: m for m in model.modules() if isinstance(m, QuantOperand)}
