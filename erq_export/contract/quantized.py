"""The model with its quantization sites: rebuilt from a bundle it is the fake-quant reference, under export it emits markers.

Letters:  B images;  T tokens;  k inputs, n outputs of a layer;  x̂ the input on its grid;  q integers
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erq_export.contract.formats.affine import Grid
from erq_export.contract.formats.logarithmic import LogGrid
from erq_export.contract.sites import OperandRole

MARKER_DOMAIN = "erq"
MARKER = "QuantLinear"
OPERAND_MARKER = "QuantOperand"


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """The columns of a weight that have grids of their own, one a row: columns (m,) int64, scale (n,), qmin (n,)."""

    columns: Tensor
    scale: Tensor
    qmin: Tensor


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """One layer's integers and grids, all float leftovers float32.

    weight_q (n, k) int8: the weight is weight_q · weight_scale[:, None];  weight_scale (n,);  bias (n,);
    weight_qmin (n,) int16: the row's grid is weight_qmin … weight_qmin + 2^w − 1; both int32 for the target `reference`;
    act: the per-tensor grid of the input, scale and bounds of shape (); None where the input stays float (`reference`);
    outliers: columns on a second grid (`reference`).
    """

    weight_q: Tensor
    weight_scale: Tensor
    weight_qmin: Tensor
    bias: Tensor
    act: Grid | None
    w_bits: int
    a_bits: int
    outliers: Outliers | None = None

    @property
    def weight(self) -> Tensor:
        """The dequantized weight (n, k) float32."""
        return self.weight_q.float() * self.column_scales

    @property
    def column_scales(self) -> Tensor:
        """What each integer is multiplied with: (n, 1), or (n, k) where some columns are outliers."""
        scale = self.weight_scale[:, None]
        if self.outliers is None:
            return scale
        scale = scale.expand(self.weight_q.shape).clone()
        scale[:, self.outliers.columns] = self.outliers.scale[:, None]
        return scale

    @property
    def deployed_grid(self) -> Grid:
        """The input's grid, which every layer has that is written into a graph."""
        if self.act is None:
            raise ValueError("a layer with a float input belongs to no graph")
        return self.act


@dataclass(frozen=True, kw_only=True)
class QuantizedOperand:
    """One operand of attention (q, k, v or the softmax): its per-tensor grid, scale and bounds of shape ().

    The grid is logarithmic for the softmax of the published scheme, which is simulated and never exported.
    """

    grid: Grid | LogGrid
    bits: int
    role: OperandRole

    @property
    def deployed_grid(self) -> Grid:
        """The uniform grid that every operand has that is written into a graph."""
        if isinstance(self.grid, LogGrid):
            raise ValueError("a logarithmic operand belongs to no graph")
        return self.grid


Part = TypeVar("Part", QuantizedLayer, QuantizedOperand)


class QuantLinear(nn.Module):
    """y = Ŵ x̂ + b with x̂ = fake_quantize(x): float32 arithmetic on integers times scales.

    Where some columns are outliers, `column_scales` (n, k) stands for weight_scale; it is not part of the state.
    """

    def __init__(self, path: str, layer: QuantizedLayer) -> None:
        super().__init__()
        self.path, self.w_bits, self.a_bits = path, layer.w_bits, layer.a_bits
        self.weight_q: Tensor
        self.weight_scale: Tensor
        self.bias: Tensor
        self.column_scales: Tensor | None
        self.act_scale: Tensor | None
        self.act_qmin: float
        self.act_qmax: float
        self.act_qmin, self.act_qmax = (0, 0) if layer.act is None else bounds(layer.act)
        self.register_buffer("weight_q", layer.weight_q)  # (n, k) int8
        self.register_buffer("weight_scale", layer.weight_scale)  # (n,)
        self.register_buffer("bias", layer.bias)  # (n,)
        by_column = None if layer.outliers is None else layer.column_scales
        self.register_buffer("column_scales", by_column, persistent=False)  # (n, k)
        self.register_buffer("act_scale", None if layer.act is None else layer.act.scale)  # ()

    @property
    def grid(self) -> Grid:
        """The input's grid, on the module's device."""
        if self.act_scale is None:
            raise ValueError(f"{self.path}: its input stays float")
        bound = torch.full_like
        return Grid(
            scale=self.act_scale,
            qmin=bound(self.act_scale, self.act_qmin),
            qmax=bound(self.act_scale, self.act_qmax),
        )

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return self._marker(x)
        x_hat = x if self.act_scale is None else self.grid.fake_quantize(x)  # (…, k)
        scales = self.weight_scale[:, None] if self.column_scales is None else self.column_scales
        return F.linear(x_hat, self.weight_q.float() * scales, self.bias)  # (…, n)

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

    def __init__(self, path: str, role: str, bits: int, grid: Grid) -> None:
        super().__init__()
        self.path, self.role, self.bits = path, role, bits
        self.scale: Tensor
        self.qmin, self.qmax = bounds(grid)
        self.register_buffer("scale", grid.scale)  # ()

    @property
    def grid(self) -> Grid:
        """The operand's grid, on the module's device."""
        bound = torch.full_like
        return Grid(scale=self.scale, qmin=bound(self.scale, self.qmin), qmax=bound(self.scale, self.qmax))

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:  # noqa: ARG002 - an Operand's signature
        if torch.onnx.is_in_onnx_export():
            return self._marker(x)
        return self.grid.fake_quantize(x)

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
        elif isinstance(value, LogGrid):
            moved[field.name] = replace(value, scale=value.scale.cpu())
        elif isinstance(value, Outliers):
            moved[field.name] = Outliers(columns=value.columns.cpu(), scale=value.scale.cpu(), qmin=value.qmin.cpu())
    return replace(part, **moved)


class LogOperand(nn.Module):
    """x̂ = fake_quantize_log(x), any shape: the published softmax quantizer. PyTorch only; no graph can hold it."""

    def __init__(self, path: str, role: str, grid: LogGrid) -> None:
        super().__init__()
        self.path, self.role, self.bits = path, role, grid.bits
        self.scale: Tensor
        self.register_buffer("scale", grid.scale)  # ()

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:  # noqa: ARG002 - an Operand's signature
        return LogGrid(scale=self.scale, bits=self.bits).fake_quantize(x)


def bounds(grid: Grid) -> tuple[float, float]:
    """(qmin, qmax) of a per-tensor grid: of type int, but where its zero point is no integer."""
    qmin, qmax = grid.qmin.item(), grid.qmax.item()
    return (int(qmin), int(qmax)) if qmin == int(qmin) else (qmin, qmax)


def install(model: nn.Module, path: str, part: QuantizedLayer | QuantizedOperand) -> None:
    """Put a QuantLinear, or an operand's quantizer, in the place of the module at `path`."""
    parent, _, name = path.rpartition(".")
    module: nn.Module
    if isinstance(part, QuantizedLayer):
        module = QuantLinear(path, part)
    elif isinstance(part.grid, LogGrid):
        module = LogOperand(path, part.role, part.grid)
    else:
        module = QuantOperand(path, part.role, part.bits, part.grid)
    setattr(model.get_submodule(parent), name, module)


def quant_linears(model: nn.Module) -> dict[str, QuantLinear]:
    """Every quantized layer by its path, in the model's order."""
    return {m.path: m for m in model.modules() if isinstance(m, QuantLinear)}


def quant_operands(model: nn.Module) -> dict[str, QuantOperand]:
    """Every operand of attention on a uniform grid by its path, in the model's order."""
    return {m.path: m for m in model.modules() if isinstance(m, QuantOperand)}
