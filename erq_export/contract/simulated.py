"""What only the target `reference` has, so that a paper's scheme can be computed as published: no graph can hold it.

Letters:  k inputs, n outputs of a layer;  m outlier columns;  x̂ the input on its grid;  q integers
Codes are wider than a container, zero points need be no integers, an input may stay float, columns may have a second grid,
the softmax may be logarithmic. Exporters take `Deployed` bundles, whose parts are those of `quantized`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from erq_export.contract.formats.affine import FreeRow, Grid
from erq_export.contract.formats.format import Format
from erq_export.contract.formats.logarithmic import LogGrid, LogRow
from erq_export.contract.quantized import QuantLinear
from erq_export.contract.records import ModulePath, Record
from erq_export.contract.rows import LayerStatistics
from erq_export.contract.sites import OperandRole


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """The columns of a weight that have grids of their own, one a row: columns (m,) int64, scale (n,), qmin (n,) int32."""

    columns: Tensor
    scale: Tensor
    qmin: Tensor

    def stored(self) -> dict[str, Tensor]:
        return {"outlier_columns": self.columns, "outlier_scale": self.scale, "outlier_qmin": self.qmin}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Outliers":
        """Inverse of `stored`. KeyError for a tensor that is missing."""
        return cls(columns=tensors["outlier_columns"], scale=tensors["outlier_scale"], qmin=tensors["outlier_qmin"])

    def cpu(self) -> "Outliers":
        return Outliers(columns=self.columns.cpu(), scale=self.scale.cpu(), qmin=self.qmin.cpu())


@dataclass(frozen=True, kw_only=True)
class SimulatedLayer:
    """One layer's integers and grids: weight_q (n, k) and weight_qmin (n,) int32, weight_scale (n,), bias (n,) float32.

    act: the per-tensor grid of the input; None where it stays float.  outliers: None where every row has one grid.
    """

    weight_q: Tensor
    weight_scale: Tensor
    weight_qmin: Tensor
    bias: Tensor
    act: Grid | None
    w_bits: int
    a_bits: int
    outliers: Outliers | None

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
    def weight(self) -> Tensor:
        """The dequantized weight (n, k) float32."""
        return self.weight_q.float() * self.column_scales

    def stored(self) -> dict[str, Tensor]:
        return {
            "weight_q": self.weight_q,
            "weight_scale": self.weight_scale,
            "weight_qmin": self.weight_qmin,
            "bias": self.bias,
            **({} if self.act is None else {"act_scale": self.act.scale}),
            **({} if self.outliers is None else self.outliers.stored()),
        }

    def cpu(self) -> "SimulatedLayer":
        return replace(
            self,
            weight_q=self.weight_q.cpu(),
            weight_scale=self.weight_scale.cpu(),
            weight_qmin=self.weight_qmin.cpu(),
            bias=self.bias.cpu(),
            act=None if self.act is None else self.act.map(Tensor.cpu),
            outliers=None if self.outliers is None else self.outliers.cpu(),
        )

    def module(self, path: str) -> nn.Module:
        return SimulatedLinear(path, self)


@dataclass(frozen=True, kw_only=True)
class SimulatedOperand:
    """One operand of attention on a per-tensor grid of any kind."""

    grid: Grid | LogGrid
    bits: int
    role: OperandRole

    def stored(self) -> dict[str, Tensor]:
        return self.grid.stored()

    def cpu(self) -> "SimulatedOperand":
        return replace(self, grid=self.grid.map(Tensor.cpu))

    def module(self, path: str) -> nn.Module:
        return SimulatedQuantizer(path, self)


class OnGrid(nn.Module):
    """x̂ of any shape, on a grid whose tensors go where the module goes; they are no part of the state."""

    def __init__(self, grid: Format) -> None:
        super().__init__()
        self.grid = grid

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.grid = self.grid.map(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.grid.fake_quantize(x)


class SimulatedLinear(nn.Module):
    """y = Ŵ x̂ + b; `column_scales` (n, 1) or (n, k) is no part of the state."""

    def __init__(self, path: str, layer: SimulatedLayer) -> None:
        super().__init__()
        self.path = path
        self.weight_q: Tensor
        self.bias: Tensor
        self.column_scales: Tensor
        self.act = None if layer.act is None else OnGrid(layer.act)
        self.register_buffer("weight_q", layer.weight_q)  # (n, k) int32
        self.register_buffer("bias", layer.bias)  # (n,)
        self.register_buffer("column_scales", layer.column_scales, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x_hat = x if self.act is None else self.act(x)  # (…, k)
        return F.linear(x_hat, self.weight_q.float() * self.column_scales, self.bias)  # (…, n)


class SimulatedQuantizer(OnGrid):
    """Takes the place of an `Operand` and, like it, ignores `beside`."""

    def __init__(self, path: str, operand: SimulatedOperand) -> None:
        super().__init__(operand.grid)
        self.path, self.role = path, operand.role

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:  # noqa: ARG002 - an Operand's signature
        return super().forward(x)


class SimulatedLayerRow(Record, frozen=True, kw_only=True, tag_field="kind", tag="simulated"):
    """What the description of a bundle says of a layer; its tensors are `layer.<path>.<name>`."""

    path: ModulePath
    w_bits: int
    a_bits: int
    act: FreeRow | None
    outliers: bool
    statistics: LayerStatistics | None = None

    @classmethod
    def of(cls, path: str, layer: SimulatedLayer, statistics: LayerStatistics | None) -> "SimulatedLayerRow":
        return cls(
            path=path,
            w_bits=layer.w_bits,
            a_bits=layer.a_bits,
            act=None if layer.act is None else layer.act.free_row(),
            outliers=layer.outliers is not None,
            statistics=statistics,
        )

    def part(self, tensors: Mapping[str, Tensor]) -> SimulatedLayer:
        """Inverse of `of`, with what `stored` gave. KeyError for a tensor that is missing."""
        return SimulatedLayer(
            weight_q=tensors["weight_q"],
            weight_scale=tensors["weight_scale"],
            weight_qmin=tensors["weight_qmin"],
            bias=tensors["bias"],
            act=None if self.act is None else self.act.grid({"scale": tensors["act_scale"]}),
            w_bits=self.w_bits,
            a_bits=self.a_bits,
            outliers=Outliers.of(tensors) if self.outliers else None,
        )


class SimulatedOperandRow(Record, frozen=True, kw_only=True, tag_field="kind", tag="simulated"):
    """What the description of a bundle says of an operand; its tensors are `operand.<path>.<name>`."""

    path: ModulePath
    role: OperandRole
    bits: int
    grid: FreeRow | LogRow

    @classmethod
    def of(cls, path: str, operand: SimulatedOperand) -> "SimulatedOperandRow":
        return cls(path=path, role=operand.role, bits=operand.bits, grid=operand.grid.free_row())

    def part(self, tensors: Mapping[str, Tensor]) -> SimulatedOperand:
        """Inverse of `of`, with what `stored` gave. KeyError for a tensor that is missing."""
        return SimulatedOperand(grid=self.grid.grid(tensors), bits=self.bits, role=self.role)


def layer_paths(model: nn.Module) -> list[str]:
    """The path of every layer that was calibrated, deployed or simulated, in the model's order."""
    return [m.path for m in model.modules() if isinstance(m, QuantLinear | SimulatedLinear)]
