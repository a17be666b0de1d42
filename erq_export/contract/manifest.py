"""manifest.json of a graph: what stands where in the file, what is claimed of it, and where it comes from."""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal, TypeVar

from msgspec import Meta

from erq_export.contract.identity import Weights
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.records import FileRecord, ModulePath, Record, Sha256
from erq_export.contract.sites import OperandRole
from erq_export.contract.spec import Argument, AttentionPrecision, Bits, Pack, TargetName
from erq_export.contract.targets import Container, named

MANIFEST = "manifest.json"
Arithmetic = Literal["int8", "float8", "float4", "float16", "bfloat16", "float32"]  # of a product: its operands' format
Count = Annotated[int, Meta(ge=0, le=2**53)]
Code = Annotated[int, Meta(ge=-255, le=255)]
DesignedBits = Annotated[int, Meta(ge=1, le=8)]
ValueName = Annotated[str, Meta(min_length=1, max_length=1000)]  # of a tensor or node in the graph


class Row(Record, frozen=True, kw_only=True):
    """One row, by the name of what it speaks of: a module path; empty where that is the model itself."""

    path: Annotated[str, Meta(max_length=1000)]


R = TypeVar("R", bound=Row)


class Quantized(Row, frozen=True, kw_only=True):
    """A tensor on a grid: designed codes qmin … qmax, the container that carries them, and the tensors' names.

    `codes` less `zero_point` are in qmin … qmax;  `output` is what follows: x̂ itself, or a layer's product.
    """

    path: ModulePath
    container: Container
    zero_point: Code
    qmin: Code
    qmax: Code
    input: ValueName
    codes: ValueName
    output: ValueName


class LoweredSite(Quantized, frozen=True, kw_only=True):
    """A quantized layer; `weight` is its integers' initializer (int8: a byte each, of a convolution for ONNX Runtime unsigned,
    128 more; int4 where packed), `gemm` the node that multiplies."""

    w_bits: DesignedBits
    a_bits: DesignedBits
    weight: ValueName
    weight_container: Pack
    gemm: ValueName


class LoweredOperand(Quantized, frozen=True, kw_only=True):
    """An operand of attention's products: q, k, v or the softmax."""

    role: OperandRole
    bits: DesignedBits


class AttentionOperator(Row, frozen=True, kw_only=True):
    """softmax(q kᵀ) v by its nodes: both products and the softmax between them. int8 where all four operands are,
    else the carrier."""

    precision: Arithmetic
    scores: ValueName
    softmax: ValueName
    context: ValueName


class Claims(Record, frozen=True, kw_only=True):
    """How many products of each kind the graph asks for, by number format; attention's two are one attention.

    A format that is not named has none.
    """

    gemm: dict[Arithmetic, Count]
    attention: dict[Arithmetic, Count]


class Sizes(Record, frozen=True, kw_only=True):
    """Bytes of the tensors: in float32, with int8 weights, with weights of at most 4 bits packed in INT4, and as written."""

    float32: Count
    int8: Count
    int4: Count
    written: Count


class Origin(Record, frozen=True, kw_only=True):
    """Where a graph comes from; the file itself holds the same as its metadata."""

    bundle_sha256: Sha256
    model: str
    model_args: dict[str, Argument]
    weights: Weights
    bits: Bits
    attention: AttentionPrecision
    method: str
    preprocess: Preprocess


class GraphManifest(FileRecord, frozen=True, kw_only=True):
    """What an exported graph says of itself; layers, operands and attentions in graph order."""

    FORMAT: ClassVar[int] = 3
    WHAT: ClassVar[str] = "manifest of a graph"
    REMEDY: ClassVar[str] = "erq-export build OUT writes graph and manifest again"

    target: TargetName
    opset: Count
    claims: Claims
    bytes: Sizes
    origin: Origin | None = None  # None: the graph of no bundle that lies in a file
    sites: tuple[LoweredSite, ...]
    operands: tuple[LoweredOperand, ...] = ()
    attention_operators: tuple[AttentionOperator, ...] = ()

    def __post_init__(self) -> None:
        named(self.target)


def by_path(rows: Iterable[R]) -> dict[str, R]:
    """The rows by their module path, in the order given."""
    return {row.path: row for row in rows}


# As a report and a problem call a format.
WORDS: dict[Arithmetic, str] = {
    "int8": "INT8",
    "float8": "FP8",
    "float4": "FP4",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
}


def told(counts: Mapping[Arithmetic, int], what: str) -> str:
    """Counts as a sentence has them: "48 INT8 and 2 FP16 GEMMs"; "no GEMMs" where there are none."""
    return f"{' and '.join(f'{n} {WORDS[kind]}' for kind, n in counts.items() if n) or 'no'} {what}"
