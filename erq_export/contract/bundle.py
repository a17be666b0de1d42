"""What calibration leaves behind: integers, scales and float leftovers in safetensors, everything else in JSON.

The bundle is the only thing that crosses from calibration to export and validation. Equal inputs give equal bytes: no
times, no machine paths, keys sorted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from msgspec import structs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from erq_export.contract import bundle_checks
from erq_export.contract.errors import DataError, SpecError
from erq_export.contract.files import file_sha256
from erq_export.contract.identity import Identity
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.quantized import QuantizedLayer, QuantizedOperand
from erq_export.contract.records import FileRecord, Record, Sha256, encode, read
from erq_export.contract.rows import ConvRow, LayerRow, LayerStatistics, OperandRow
from erq_export.contract.simulated import SimulatedLayer, SimulatedLayerRow, SimulatedOperand, SimulatedOperandRow
from erq_export.contract.spec import Quantization

TENSORS, DESCRIPTION = "tensors.safetensors", "bundle.json"


class DataFingerprint(Record, frozen=True, kw_only=True):
    """Which images were calibrated on: their names, and the hash of their preprocessed pixels."""

    n_images: int
    names: tuple[str, ...]
    pixels_sha256: Sha256


Layer = QuantizedLayer | SimulatedLayer
Operand = QuantizedOperand | SimulatedOperand


class BundleDescription(FileRecord, frozen=True, kw_only=True):
    """bundle.json: everything of a bundle that is no tensor."""

    FORMAT: ClassVar[int] = 4
    WHAT: ClassVar[str] = "bundle"
    REMEDY: ClassVar[str] = "calibrate again"

    spec: Quantization
    model: Identity
    data: DataFingerprint
    layers: tuple[LayerRow | ConvRow | SimulatedLayerRow, ...]
    operands: tuple[OperandRow | SimulatedOperandRow, ...]
    versions: dict[str, str]
    tensors_sha256: Sha256
    rotated: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Quantized layers by module path, the float remainder as a state dict, and how all of it came about.

    rotated: the residual streams and values that have another basis than the float model's (`calibrate.rotation`).
    Its parts are deployed, or, calibrated for `reference` alone, simulated: whoever writes graphs asks for `deployed`.
    """

    spec: Quantization
    identity: Identity
    layers: Mapping[str, Layer]
    operands: Mapping[str, Operand] = field(default_factory=dict)  # of attention; none where it stays float
    leftovers: dict[str, Tensor]
    data: DataFingerprint
    statistics: dict[str, LayerStatistics] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rotated: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        save_file(self.tensors(), folder / TENSORS)
        (folder / DESCRIPTION).write_bytes(encode(self.description(file_sha256(folder / TENSORS))))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in the file, on the CPU, names sorted."""
        tensors = {f"float.{name}": t for name, t in self.leftovers.items()}
        for path, layer in self.layers.items():
            tensors |= {f"layer.{path}.{name}": t for name, t in layer.stored().items()}
        for path, operand in self.operands.items():
            tensors |= {f"operand.{path}.{name}": t for name, t in operand.stored().items()}
        return {k: tensors[k].detach().cpu().contiguous() for k in sorted(tensors)}

    def description(self, tensors_sha256: str) -> BundleDescription:
        """Everything else."""
        return BundleDescription(
            spec=self.spec,
            model=self.identity,
            data=self.data,
            layers=tuple(_layer_row(path, part, self.statistics.get(path)) for path, part in self.layers.items()),
            operands=tuple(_operand_row(path, part) for path, part in self.operands.items()),
            versions=self.versions,
            tensors_sha256=tensors_sha256,
            rotated=self.rotated,
        )

    def deployed(self) -> "Deployed":
        """The same, its parts known to be such as a graph can hold. SpecError for one that is simulated."""
        layers = {path: part for path, part in self.layers.items() if isinstance(part, QuantizedLayer)}
        operands = {path: part for path, part in self.operands.items() if isinstance(part, QuantizedOperand)}
        if len(layers) < len(self.layers) or len(operands) < len(self.operands):
            raise SpecError(
                "the bundle was calibrated for reference alone: its grids need not fit any target",
                fix="calibrate again, for example with --to onnx",
            )
        return Deployed(
            spec=self.spec,
            identity=self.identity,
            layers=layers,
            operands=operands,
            leftovers=self.leftovers,
            data=self.data,
            statistics=self.statistics,
            versions=self.versions,
            rotated=self.rotated,
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
        except (SafetensorError, ValueError, OSError) as e:
            raise DataError(f"{folder} is no bundle: {e}", fix="calibrate again") from e

    @classmethod
    def of(cls, description: BundleDescription, tensors: dict[str, Tensor]) -> "Bundle":
        """Inverse of `tensors` and `description`. KeyError for a tensor that is missing, DataError for one that cannot be."""
        bundle_checks.check(description.spec, description.layers, description.operands, tensors)
        return Bundle(
            spec=description.spec,
            identity=_checked(description.model),
            layers={row.path: row.part(_Own(tensors, f"layer.{row.path}.")) for row in description.layers},
            operands={row.path: row.part(_Own(tensors, f"operand.{row.path}.")) for row in description.operands},
            leftovers={k.removeprefix("float."): t for k, t in tensors.items() if k.startswith("float.")},
            data=description.data,
            statistics={row.path: row.statistics for row in description.layers if row.statistics is not None},
            versions=description.versions,
            rotated=description.rotated,
        )


@dataclass(frozen=True, kw_only=True)
class Deployed(Bundle):
    """A bundle that graphs can be written from."""

    layers: Mapping[str, QuantizedLayer]
    operands: Mapping[str, QuantizedOperand] = field(default_factory=dict)


def _checked(identity: Identity) -> Identity:
    """The identity with its preprocessing held to the rules that the command line has. SpecError otherwise."""
    return structs.replace(identity, preprocess=Preprocess.from_config(identity.preprocess.to_json(), {}))


def _layer_row(path: str, layer: Layer, statistics: LayerStatistics | None) -> LayerRow | SimulatedLayerRow:
    if isinstance(layer, SimulatedLayer):
        return SimulatedLayerRow.of(path, layer, statistics)
    return LayerRow.of(path, layer, statistics)


def _operand_row(path: str, operand: Operand) -> OperandRow | SimulatedOperandRow:
    if isinstance(operand, SimulatedOperand):
        return SimulatedOperandRow.of(path, operand)
    return OperandRow.of(path, operand)


class _Own(Mapping[str, Tensor]):
    """One part's tensors by their short names; KeyError names a missing one as it is called in the file."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def fingerprint(folder: Path) -> str:
    """The bundle's hash, which every later artifact records: sha256 of its description (which names its tensors')."""
    return file_sha256(folder / DESCRIPTION)
