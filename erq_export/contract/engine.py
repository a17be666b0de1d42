"""engine.json: what was compiled from which graph and for which machine, and what of it runs differently from its claims."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from erq_export.contract.manifest import Arithmetic, Count
from erq_export.contract.records import FileRecord, Record, Sha256
from erq_export.contract.spec import Capability

ENGINE = "engine.json"
MODEL, TIMINGS = "model.engine", "timing.cache"  # beside it; the second where a package times kernels


class Batch(Record, frozen=True, kw_only=True):
    """The batches that an engine takes, and the one that it is tuned for."""

    smallest: Count
    optimal: Count
    largest: Count


class Gpu(Record, frozen=True, kw_only=True):
    """A GPU by its name and compute capability."""

    name: str
    capability: Capability


class PlanSummary(Record, frozen=True, kw_only=True):
    """How many layers of each sort the plan runs, by number format; `kernels` multiply nothing, `layers` is the sum."""

    gemm: dict[Arithmetic, Count]
    conv: dict[Arithmetic, Count]
    attention: dict[Arithmetic, Count]
    kernels: Count
    layers: Count


class EngineRecord(FileRecord, frozen=True, kw_only=True):
    """Enough to know an engine again, and to say why another machine, graph or version cannot use it.

    graph_sha256: of the graph's files (`graph_sha256`);  bundle_sha256: None for the graph of no bundle;  gpu: that it was
    built on, None where it was built ahead of time, for `compute_capabilities`;  workspace_mib: None: the package's own
    limit;  flags: what else was set;  precision: of every layer that the graph claims;  attention: its format where a fused
    kernel computes it, else what runs instead;  unfused: floating-point attentions without one;  problems: broken claims,
    in plain words;  build_s: seconds of the build, the one field that another build of the same engine changes.
    """

    FORMAT: ClassVar[int] = 4
    WHAT: ClassVar[str] = "record of an engine"
    REMEDY: ClassVar[str] = "erq-export build OUT builds the engine again"

    package: str
    version: str
    graph_sha256: Sha256
    bundle_sha256: Sha256 | None
    engine_sha256: Sha256
    gpu: Gpu | None
    compute_capabilities: tuple[str, ...]
    batch: Batch
    workspace_mib: Count | None
    flags: tuple[str, ...]
    bytes: Count
    build_s: Annotated[float, Meta(ge=0)]
    plan: PlanSummary
    precision: dict[str, Arithmetic | Literal["absent"]]
    attention: dict[str, str]
    unfused: tuple[str, ...]
    problems: tuple[str, ...]
