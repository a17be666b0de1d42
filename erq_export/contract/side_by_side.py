"""Runs side by side: of each what was asked, how accurate, exact, small and fast it is, and what else is not the same."""

from typing import Annotated, ClassVar

from msgspec import Meta

from erq_export.contract.accuracy import Judged, Outputs, Share
from erq_export.contract.bench import Speedup
from erq_export.contract.cost import StageCost
from erq_export.contract.identity import Weights
from erq_export.contract.manifest import Count
from erq_export.contract.records import FileRecord, Record, Sha256


class HeldOut(Record, frozen=True, kw_only=True):
    """What a run found on held-out images. images_sha256: None where its manifest does not say which they were."""

    n_images: Count
    images_sha256: str | None
    outputs: Outputs
    float_top1: Share | None
    reference: Judged
    graphs: dict[str, Judged]


class Apart(Record, frozen=True, kw_only=True):
    """How far a graph's outputs are from PyTorch's, and the reference's own noise, both relative L2."""

    relative_l2: float
    floor: float


class RunFigures(Record, frozen=True, kw_only=True):
    """One run. folder: as it was named;  verdict: one sentence;  mean_weight_bits: None where nobody counted;
    layer_error: mean over the layers on the calibration rows;  graph_bytes, engine_bytes, parity: by target;
    calibration: None where that stage was not run;  speed: beside the float twin, by what ran."""

    folder: str
    erq_export: str
    bundle_sha256: Sha256
    verdict: str
    problems: tuple[str, ...]
    model: str
    weights: Weights
    weights_sha256: Sha256 | None
    bits: str
    mean_weight_bits: float | None
    method: str
    attention: str
    targets: tuple[str, ...]
    n_calibrated: Count
    pixels_sha256: Sha256
    layer_error: float | None
    held_out: HeldOut | None
    parity: dict[str, Apart]
    graph_bytes: dict[str, Count]
    engine_bytes: dict[str, Count]
    calibration: StageCost | None
    speed: dict[str, Speedup]
    processor: str


class SideBySide(FileRecord, frozen=True, kw_only=True):
    """differences: what runs do not have in common though figures are compared, in words."""

    FORMAT: ClassVar[int] = 2
    WHAT: ClassVar[str] = "comparison of runs"
    REMEDY: ClassVar[str] = "erq-export compare OUT OUT --out FILE.json writes it again"

    erq_export: str
    runs: Annotated[tuple[RunFigures, ...], Meta(min_length=2)]
    differences: tuple[str, ...]
