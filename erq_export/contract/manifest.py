"""The records of a graph's manifest: what stands where in the file, and what is claimed of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row, by the name of what it speaks of: a module path."""

    path: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; what a later version wrote beside it is left out."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Quantized(Record):
    """A tensor on a grid: designed codes qmin … qmax, the container that carries them, and the tensors' names.

    `codes` less `zero_point` are in qmin … qmax;  `output` is what follows: x̂ itself, or a layer's product.
    """

    container: str
    zero_point: int
    qmin: int
    qmax: int
    input: str
    codes: str
    output: str


@dataclass(frozen=True, kw_only=True)
class LoweredSite(Quantized):
    """A quantized layer; `weight` is its integers' initializer (int8, or int4 where packed), `gemm` the node that multiplies."""

    w_bits: int
    a_bits: int
    weight: str
    weight_container: str
    gemm: str


@dataclass(frozen=True, kw_only=True)
class LoweredOperand(Quantized):
    """An operand of attention's products: q, k, v or the softmax."""

    role: str
    bits: int


@dataclass(frozen=True, kw_only=True)
class AttentionOperator(Record):
    """softmax(q kᵀ) v by its nodes: both products and the softmax between them. int8 where all four operands are."""

    precision: Literal["int8", "fp"]
    scores: str
    softmax: str
    context: str


def sites(manifest: Mapping[str, Any]) -> dict[str, LoweredSite]:
    """Every quantized layer by its module path, in graph order."""
    return {row["path"]: LoweredSite.from_json(row) for row in manifest["sites"]}


def operands(manifest: Mapping[str, Any]) -> dict[str, LoweredOperand]:
    """Every quantized operand of attention by its module path, in graph order."""
    return {row["path"]: LoweredOperand.from_json(row) for row in manifest["operands"]}


def attention(manifest: Mapping[str, Any]) -> tuple[AttentionOperator, ...]:
    """Every attention operator, in graph order."""
    return tuple(AttentionOperator.from_json(row) for row in manifest["attention_operators"])
