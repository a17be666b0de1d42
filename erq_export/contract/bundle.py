"""What calibration leaves behind: integers, scales and float leftovers in safetensors, everything else in JSON.

The bundle is the only thing that crosses from calibration to export and validation. Equal inputs give equal bytes: no
times, no machine paths, keys sorted.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.files import file_sha256
from erq_export.contract.formats.affine import Grid
from erq_export.contract.formats.logarithmic import LogGrid
from erq_export.contract.identity import Identity
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.quantized import Outliers, QuantizedLayer, QuantizedOperand, bounds
from erq_export.contract.spec import QuantSpec

FORMAT = 2
TENSORS, DESCRIPTION = "tensors.safetensors", "bundle.json"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Quantized layers by module path, the float remainder as a state dict, and how all of it came about."""

    spec: QuantSpec
    identity: Identity
    layers: dict[str, QuantizedLayer]
    operands: dict[str, QuantizedOperand] = field(default_factory=dict)  # of attention; none where it stays float
    leftovers: dict[str, Tensor]
    data: dict[str, Any]  # fingerprint and size of the calibration set
    statistics: dict[str, dict[str, float]] = field(default_factory=dict)  # per layer: errors, rows
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        tensors = {f"float.{name}": t for name, t in self.leftovers.items()}
        for path, layer in self.layers.items():
            tensors |= {f"layer.{path}.{name}": t for name, t in _tensors(layer).items()}
        tensors |= {f"operand.{path}.scale": operand.grid.scale for path, operand in self.operands.items()}
        save_file({k: tensors[k].detach().cpu().contiguous() for k in sorted(tensors)}, folder / TENSORS)
        description = {
            "format": FORMAT,
            "spec": self.spec.to_json(),
            "model": asdict(self.identity) | {"preprocess": self.identity.preprocess.to_json()},
            "data": self.data,
            "layers": [
                {
                    "path": path,
                    "w_bits": layer.w_bits,
                    "a_bits": layer.a_bits,
                    **_bounds(layer.act, "act_"),
                    "statistics": self.statistics.get(path, {}),
                }
                for path, layer in self.layers.items()
            ],
            "operands": [
                {
                    "path": path,
                    "role": operand.role,
                    "bits": operand.bits,
                    **_bounds(operand.grid, ""),
                }
                for path, operand in self.operands.items()
            ],
            "versions": self.versions,
            "tensors_sha256": file_sha256(folder / TENSORS),
        }
        text = json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Read a bundle; DataError where it is missing, damaged or of another format."""
        try:
            description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            if not isinstance(description, dict):
                raise ValueError("not a JSON object")
        except (OSError, ValueError) as e:
            raise DataError(
                f"{folder} holds no readable bundle: {e}", fix="run erq-export MODEL --out DIR first"
            ) from e
        if description.get("format") != FORMAT:
            raise DataError(
                f"{folder} is a bundle of format {description.get('format')}, this version reads {FORMAT}",
                fix="calibrate again, or use the erq-export version named in it",
            )
        if not (folder / TENSORS).is_file() or file_sha256(folder / TENSORS) != description["tensors_sha256"]:
            raise DataError(f"{folder / TENSORS} is missing or damaged (its sha256 differs)", fix="calibrate again")
        tensors = load_file(folder / TENSORS)
        model = description["model"]
        return cls(
            spec=QuantSpec.from_json(description["spec"]),
            identity=Identity(**model | {"preprocess": Preprocess.from_config(model["preprocess"], {})}),
            layers={row["path"]: _layer(row, tensors) for row in description["layers"]},
            operands={row["path"]: _operand(row, tensors) for row in description["operands"]},
            leftovers={k.removeprefix("float."): t for k, t in tensors.items() if k.startswith("float.")},
            data=description["data"],
            statistics={row["path"]: row["statistics"] for row in description["layers"]},
            versions=description["versions"],
        )


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


def _bounds(grid: Grid | LogGrid | None, prefix: str) -> dict[str, float]:
    """qmin and qmax of a uniform grid; a logarithmic one has none, nor has a float input."""
    if not isinstance(grid, Grid):
        return {}
    qmin, qmax = bounds(grid)
    return {f"{prefix}qmin": qmin, f"{prefix}qmax": qmax}


def _layer(row: dict[str, Any], tensors: dict[str, Tensor]) -> QuantizedLayer:
    def tensor(name: str) -> Tensor:
        return tensors[f"layer.{row['path']}.{name}"]

    outliers = None
    if f"layer.{row['path']}.outlier_columns" in tensors:
        outliers = Outliers(**{name: tensor(f"outlier_{name}") for name in ("columns", "scale", "qmin")})
    return QuantizedLayer(
        weight_q=tensor("weight_q"),
        weight_scale=tensor("weight_scale"),
        weight_qmin=tensor("weight_qmin"),
        bias=tensor("bias"),
        act=_grid(row, "act_", tensor("act_scale")) if "act_qmin" in row else None,
        w_bits=row["w_bits"],
        a_bits=row["a_bits"],
        outliers=outliers,
    )


def _operand(row: dict[str, Any], tensors: dict[str, Tensor]) -> QuantizedOperand:
    scale = tensors[f"operand.{row['path']}.scale"]
    grid = _grid(row, "", scale) if "qmin" in row else LogGrid(scale=scale, bits=row["bits"])
    return QuantizedOperand(grid=grid, bits=row["bits"], role=row["role"])


def _grid(row: dict[str, Any], prefix: str, scale: Tensor) -> Grid:
    return Grid(scale=scale, **{name: torch.tensor(float(row[prefix + name])) for name in ("qmin", "qmax")})


def fingerprint(folder: Path) -> str:
    """The bundle's hash, which every later artifact records: sha256 of its description (which names its tensors')."""
    return file_sha256(folder / DESCRIPTION)
