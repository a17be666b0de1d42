"""report.json: what a run was, what was measured of it, and what of that is a problem. Words and tables are made from it."""

from typing import Annotated, ClassVar

from msgspec import Meta

from erq_export.contract.accuracy import Accuracy
from erq_export.contract.cost import StageCost
from erq_export.contract.detection import Detection, PartParity
from erq_export.contract.engine import EngineRecord
from erq_export.contract.followed import Followed
from erq_export.contract.histograms import Histograms
from erq_export.contract.identity import Identity
from erq_export.contract.manifest import Claims, Count, DesignedBits, Sizes
from erq_export.contract.parity import ParityReport
from erq_export.contract.records import FileRecord, Record, Scalar, Sha256
from erq_export.contract.rows import LayerStatistics
from erq_export.contract.spec import Bits, MethodName, Quantization, TargetName
from erq_export.contract.story import Story
from erq_export.contract.targets import Carrier, Container, GridRules

REPORT = "report.json"


class Figures(Record, frozen=True, kw_only=True):
    """A figure over several seeds: mean, sample standard deviation, least, largest, and all values in the order of the seeds."""

    mean: float
    std: float
    min: float
    max: float
    all: Annotated[tuple[float, ...], Meta(min_length=1)]


class ImagesUsed(Record, frozen=True, kw_only=True):
    """What was calibrated on."""

    n_images: Count
    pixels_sha256: Sha256


class ComparisonRow(Record, frozen=True, kw_only=True):
    """One setting of the comparison, over the seeds. Without a graph for ONNX Runtime only the reference has figures."""

    bits: Bits
    method: MethodName
    layer_error: Figures
    top1_reference: Figures
    top1_onnx: Figures | None = None
    agreement: Figures | None = None


class PriceRow(Record, frozen=True, kw_only=True):
    """One choice between the published scheme and what is deployed, over the seeds; it keeps the choices of the rows above.

    options: what changed, by name;  logits_error: ‖ŷ − y‖/‖y‖ of the logits;  top1: None without labels.
    """

    change: str
    options: dict[str, Scalar | GridRules]
    layer_error: Figures
    logits_error: Figures
    top1: Figures | None = None


class PartReport(Record, frozen=True, kw_only=True):
    """One part's graph of a detector, and its engine; parity: None for the graph of the whole, which has `followed`."""

    bytes: Count
    claims: Claims
    parity: PartParity | None = None
    engine: EngineRecord | None = None
    followed: Followed | None = None


class TargetReport(Record, frozen=True, kw_only=True):
    """One target's graph, and its engine where one was built.

    bytes: the file's size;  packed: layers with INT4 weights;  executed: what multiplies each layer, attention: what each
    attention runs, in the engine's plan or else in ONNX Runtime;  parity: None where another target has the same graph;
    parts: of a detector, whose figures here are their sums.
    """

    container: Container
    carrier: Carrier
    bytes: Count
    sizes: Sizes
    packed: Count
    claims: Claims
    executed: dict[str, str]
    attention: dict[str, str]
    parity: ParityReport | None = None
    engine: EngineRecord | None = None
    parts: dict[str, PartReport] = {}

    @property
    def engines(self) -> dict[str, EngineRecord]:
        """By the part's name; "" for the engine of a classifier."""
        whole = {} if self.engine is None else {"": self.engine}
        return whole | {name: part.engine for name, part in self.parts.items() if part.engine is not None}

    @property
    def compiled(self) -> bool:
        """Is there an engine?"""
        return bool(self.engines)

    @property
    def engine_problems(self) -> list[str]:
        """Broken claims, by part."""
        return [f"{name}: {p}" if name else p for name, engine in self.engines.items() for p in engine.problems]


class Timing(Record, frozen=True, kw_only=True):
    """One runner's time for the batch in milliseconds; conversion to and from torch tensors included."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float


class Ratio(Record, frozen=True, kw_only=True):
    """How many times as fast as the baseline: quartiles of the ratios within a round, and the ratio of the medians."""

    q25: float
    median: float
    q75: float
    of_medians: float


class Latency(Record, frozen=True, kw_only=True):
    """Timings by runner, ratios by every runner but the first; where, and how often, it was measured."""

    batch: Count
    rounds: Count
    warm_up: Count
    threads: Count
    processor: str
    timings: dict[str, Timing]
    ratios: dict[str, Ratio]


class Layer(Record, frozen=True, kw_only=True):
    """One quantized layer, and its output errors on the calibration rows; 32 bits are an input that stays float."""

    path: str
    w_bits: DesignedBits
    a_bits: Annotated[int, Meta(ge=1, le=32)]
    statistics: LayerStatistics


class Report(FileRecord, frozen=True, kw_only=True):
    """Everything that a run says of itself. `headline` are its sentences, the most important first."""

    FORMAT: ClassVar[int] = 4
    WHAT: ClassVar[str] = "report"
    REMEDY: ClassVar[str] = "erq-export validate OUT writes the report again"

    headline: tuple[str, ...] = ()
    erq_export: str
    bundle_sha256: Sha256
    model: Identity
    quantization: Quantization
    targets_asked: tuple[TargetName, ...]
    data: ImagesUsed
    machine: dict[str, str]
    versions: dict[str, str]
    stages: tuple[StageCost, ...]
    accuracy: Accuracy | None
    comparison: tuple[ComparisonRow, ...]
    price: tuple[PriceRow, ...]
    targets: dict[str, TargetReport]
    latency: Latency | None
    layers: tuple[Layer, ...]
    not_verified: tuple[str, ...]
    problems: tuple[str, ...]
    rotated: tuple[str, ...] = ()
    story: Story | None = None
    histograms: Histograms | None = None
    detection: Detection | None = None

    @property
    def parts(self) -> dict[str, PartReport]:
        """Of a detector, by "TARGET PART"."""
        return {f"{name} {part}": one for name, target in self.targets.items() for part, one in target.parts.items()}
