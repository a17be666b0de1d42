"""What the Python API's stages give back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from erq_export.contract.parity import ParityReport


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An exported graph: `path` of model.onnx, its manifest beside it."""

    target: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A built engine: `path` of model.engine, its record and plan beside it."""

    target: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How equal a graph is to its bundle's reference, and how accurate both are; top-1 in per cent where there are labels.

    agreement: share of images that both put in the same class, in per cent.
    """

    parity: ParityReport
    n_images: int
    agreement: float
    top1: Mapping[str, float]
