"""What the description of a bundle says of one layer or operand that is deployed; the rest are tensors."""

from collections.abc import Mapping
from typing import Any

from msgspec import structs
from torch import Tensor

from erq_export.contract.formats.affine import AffineRow
from erq_export.contract.kernel import Kernel
from erq_export.contract.quantized import QuantizedConv, QuantizedLayer, QuantizedOperand
from erq_export.contract.records import ModulePath, Record
from erq_export.contract.sites import OperandRole


class LayerStatistics(Record, frozen=True, kw_only=True):
    """Output errors of one layer on the calibration rows, relative to the output's energy: Σ‖ŷ − y‖²/Σ‖y‖².

    error_inputs: with only the inputs quantized;  error_nearest: with the weights then rounded to nearest;  error: as solved.
    error_unseen: of a few outputs, solved for one half of the images and measured on the other (both ways); None where there
    is one image.  ridge: the layer's λ, where the method has one.
    """

    n_rows: int
    error_inputs: float
    error_nearest: float
    error: float
    error_unseen: float | None = None
    ridge: float | None = None


class LayerRow(Record, frozen=True, kw_only=True, tag_field="kind", tag="deployed"):
    """A layer; its tensors are `layer.<path>.<name>`."""

    path: ModulePath
    w_bits: int
    a_bits: int
    act: AffineRow
    statistics: LayerStatistics | None = None

    @classmethod
    def of(cls, path: str, layer: QuantizedLayer, statistics: LayerStatistics | None) -> "LayerRow":
        bits = {"w_bits": layer.w_bits, "a_bits": layer.a_bits}
        row = cls(path=path, **bits, act=layer.act.row(), statistics=statistics)
        return ConvRow(**structs.asdict(row), kernel=layer.kernel) if isinstance(layer, QuantizedConv) else row

    def part(self, tensors: Mapping[str, Tensor]) -> QuantizedLayer:
        """Inverse of `of`, with what `stored` gave. KeyError for a tensor that is missing."""
        return QuantizedLayer(**self._fields(tensors))

    def _fields(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        own = {name: tensors[name] for name in ("weight_q", "weight_scale", "weight_qmin", "bias")}
        act = self.act.grid({"scale": tensors["act_scale"]})
        return own | {"act": act, "w_bits": self.w_bits, "a_bits": self.a_bits}


class ConvRow(LayerRow, frozen=True, kw_only=True, tag_field="kind", tag="convolution"):
    """A convolution; its weight is stored as the matrix (n, k)."""

    kernel: Kernel

    def part(self, tensors: Mapping[str, Tensor]) -> QuantizedConv:
        return QuantizedConv(**self._fields(tensors), kernel=self.kernel)


class OperandRow(Record, frozen=True, kw_only=True, tag_field="kind", tag="deployed"):
    """An operand; its tensors are `operand.<path>.<name>`."""

    path: ModulePath
    role: OperandRole
    bits: int
    grid: AffineRow

    @classmethod
    def of(cls, path: str, operand: QuantizedOperand) -> "OperandRow":
        return cls(path=path, role=operand.role, bits=operand.bits, grid=operand.grid.row())

    def part(self, tensors: Mapping[str, Tensor]) -> QuantizedOperand:
        """Inverse of `of`, with what `stored` gave. KeyError for a tensor that is missing."""
        return QuantizedOperand(grid=self.grid.grid(tensors), bits=self.bits, role=self.role)
