"""What calibration leaves behind: integers, scales and float leftovers in safetensors, everything else in JSON.

The bundle is the only thing that crosses from calibration to export and validation. Equal inputs give equal bytes: no
times, no machine paths, keys sorted.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from msgspec import structs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.files import file_sha256
from erq_export.contract.formats.affine import Grid
from erq_export.contract.formats.logarithmic import LogGrid
from erq_export.contract.identity import Identity
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.quantized import Outliers, QuantizedLayer, QuantizedOperand, bounds
from erq_export.contract.records import FileRecord, ModulePath, Record, Sha256, encode, read
from erq_export.contract.sites import OperandRole
from erq_export.contract.spec import Quantization

TENSORS, DESCRIPTION = "tensors.safetensors", "bundle.json"


class DataFingerprint(Record, frozen=True, kw_only=True):
    """Which images were calibrated on: their names, and the hash of their preprocessed pixels."""

    n_images: int
    names: tuple[str, ...]
    pixels_sha256: Sha256


class LayerStatistics(Record, frozen=True, kw_only=True):
    """Output errors of one layer on the calibration rows, relative to the output's energy: Σ‖ŷ − y‖²/Σ‖y‖².

    error_inputs: with only the inputs quantized;  error_nearest: with the weights then rounded to nearest;  error: as solved.
    """

    n_rows: int
    error_inputs: float
    error_nearest: float
    error: float


class LayerRow(Record, frozen=True, kw_only=True):
    """What the description says of a layer; its tensors are `layer.<path>.<name>`. Without bounds its input stays float."""

    path: ModulePath
    w_bits: int
    a_bits: int
    act_qmin: float | None = None
    act_qmax: float | None = None
    statistics: LayerStatistics | None = None


class OperandRow(Record, frozen=True, kw_only=True):
    """What the description says of an operand; its scale is `operand.<path>.scale`. Without bounds its grid is logarithmic."""

    path: ModulePath
    role: OperandRole
    bits: int
    qmin: float | None = None
    qmax: float | None = None


class BundleDescription(FileRecord, frozen=True, kw_only=True):
    """bundle.json: everything of a bundle that is no tensor."""

    FORMAT: ClassVar[int] = 3
    WHAT: ClassVar[str] = "bundle"
    REMEDY: ClassVar[str] = "calibrate again"

    spec: Quantization
    model: Identity
    data: DataFingerprint
    layers: tuple[LayerRow, ...]
    operands: tuple[OperandRow, ...]
    versions: dict[str, str]
    tensors_sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Quantized layers by module path, the float remainder as a state dict, and how all of it came about."""

    spec: Quantization
    identity: Identity
    layers: dict[str, QuantizedLayer]
    operands: dict[str, QuantizedOperand] = field(default_factory=dict)  # of attention; none where it stays float
    leftovers: dict[str, Tensor]
    data: DataFingerprint
    statistics: dict[str, LayerStatistics] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        save_file(self.tensors(), folder / TENSORS)
        (folder / DESCRIPTION).write_bytes(encode(self.description(file_sha256(folder / TENSORS))))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in the file, on the CPU, names sorted."""
        tensors = {f"float.{name}": t for name, t in self.leftovers.items()}
        for path, layer in self.layers.items():
            tensors |= {f"layer.{path}.{name}": t for name, t in _tensors(layer).items()}
        tensors |= {f"operand.{path}.scale": operand.grid.scale for path, operand in self.operands.items()}
        return {k: tensors[k].detach().cpu().contiguous() for k in sorted(tensors)}

    def description(self, tensors_sha256: str) -> BundleDescription:
        """Everything else."""
        return BundleDescription(
            spec=self.spec,
            model=self.identity,
            data=self.data,
            layers=tuple(self._layer_row(path, layer) for path, layer in self.layers.items()),
            operands=tuple(_operand_row(path, operand) for path, operand in self.operands.items()),
            versions=self.versions,
            tensors_sha256=tensors_sha256,
        )

    def _layer_row(self, path: str, layer: QuantizedLayer) -> LayerRow:
        qmin, qmax = (None, None) if layer.act is None else bounds(layer.act)
        return LayerRow(
            path=path,
            w_bits=layer.w_bits,
            a_bits=layer.a_bits,
            act_qmin=qmin,
            act_qmax=qmax,
            statistics=self.statistics.get(path),
        )

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Read a bundle, which may come from elsewhere. DataError where it is missing, damaged or of another format."""
        description = read(BundleDescription, folder / DESCRIPTION)
        path = folder / TENSORS
        if not path.is_file() or file_sha256(path) != description.tensors_sha256:
            raise DataError(f"{path} is missing or damaged (its sha256 differs)", fix="calibrate again")
        try:
            return cls.of(description, load_file(path))
        except KeyError as e:
            raise DataError(f"{path} lacks the tensor {e} that {DESCRIPTION} names", fix="calibrate again") from e
        except (SafetensorError, ValueError) as e:
            raise DataError(f"{folder} is no bundle: {e}", fix="calibrate again") from e

    @classmethod
    def of(cls, description: BundleDescription, tensors: dict[str, Tensor]) -> "Bundle":
        """Inverse of `tensors` and `description`. KeyError for a tensor that is missing."""
        return cls(
            spec=description.spec,
            identity=_checked(description.model),
            layers={row.path: _layer(row, tensors) for row in description.layers},
            operands={row.path: _operand(row, tensors) for row in description.operands},
            leftovers={k.removeprefix("float."): t for k, t in tensors.items() if k.startswith("float.")},
            data=description.data,
            statistics={row.path: row.statistics for row in description.layers if row.statistics is not None},
            versions=description.versions,
        )


def _checked(identity: Identity) -> Identity:
    """The identity with its preprocessing held to the rules that the command line has. SpecError otherwise."""
    return structs.replace(identity, preprocess=Preprocess.from_config(identity.preprocess.to_json(), {}))


def _operand_row(path: str, operand: QuantizedOperand) -> OperandRow:
    qmin, qmax = bounds(operand.grid) if isinstance(operand.grid, Grid) else (None, None)
    return OperandRow(path=path, role=operand.role, bits=operand.bits, qmin=qmin, qmax=qmax)


def _tensors(layer: QuantizedLayer) -> dict[str, Tensor]:
    tensors = {
        "weight_q": layer.weight_q,
        "weight_scale": layer.weight_scale,
        "weight_qmin": layer.weight_qmin,
        "bias": layer.bias,
    }
    if layer.act is not None:
        tensors["act_scale"] = layer.act.scale
    if layer.outliers is not None:
        tensors |= {f"outlier_{name}": getattr(layer.outliers, name) for name in ("columns", "scale", "qmin")}
    return tensors


def _layer(row: LayerRow, tensors: dict[str, Tensor]) -> QuantizedLayer:
    def tensor(name: str) -> Tensor:
        return tensors[f"layer.{row.path}.{name}"]

    outliers, act = None, None
    if f"layer.{row.path}.outlier_columns" in tensors:
        outliers = Outliers(**{name: tensor(f"outlier_{name}") for name in ("columns", "scale", "qmin")})
    if row.act_qmin is not None and row.act_qmax is not None:
        act = _grid(tensor("act_scale"), row.act_qmin, row.act_qmax)
    return QuantizedLayer(
        weight_q=tensor("weight_q"),
        weight_scale=tensor("weight_scale"),
        weight_qmin=tensor("weight_qmin"),
        bias=tensor("bias"),
        act=act,
        w_bits=row.w_bits,
        a_bits=row.a_bits,
        outliers=outliers,
    )


def _operand(row: OperandRow, tensors: dict[str, Tensor]) -> QuantizedOperand:
    scale = tensors[f"operand.{row.path}.scale"]
    if row.qmin is None or row.qmax is None:
        return QuantizedOperand(grid=LogGrid(scale=scale, bits=row.bits), bits=row.bits, role=row.role)
    return QuantizedOperand(grid=_grid(scale, row.qmin, row.qmax), bits=row.bits, role=row.role)


def _grid(scale: Tensor, qmin: float, qmax: float) -> Grid:
    return Grid(scale=scale, qmin=torch.tensor(float(qmin)), qmax=torch.tensor(float(qmax)))


def fingerprint(folder: Path) -> str:
    """The bundle's hash, which every later artifact records: sha256 of its description (which names its tensors')."""
    return file_sha256(folder / DESCRIPTION)
