"""engine.json: what was compiled, and what of it runs differently from the graph's claims."""

from typing import ClassVar, Literal

from erq_export.contract.manifest import Arithmetic, Count
from erq_export.contract.records import FileRecord, Record

ENGINE = "engine.json"


class Batch(Record, frozen=True, kw_only=True):
    """The batches that an engine takes, and the one that it is tuned for."""

    smallest: Count
    optimal: Count
    largest: Count


class PlanSummary(Record, frozen=True, kw_only=True):
    """How many layers of each sort the plan runs, by number format; `kernels` multiply nothing, `layers` is the sum."""

    gemm: dict[Arithmetic, Count]
    conv: dict[Arithmetic, Count]
    attention: dict[Arithmetic, Count]
    kernels: Count
    layers: Count


class EngineRecord(FileRecord, frozen=True, kw_only=True):
    """precision: of every layer that the graph claims;  attention: its format where a fused kernel computes it, else
    what runs instead;  unfused: floating-point attentions without one;  problems: broken claims, in plain words."""

    FORMAT: ClassVar[int] = 3
    WHAT: ClassVar[str] = "record of an engine"
    REMEDY: ClassVar[str] = "erq-export build OUT builds the engine again"

    package: str
    version: str
    compute_capabilities: tuple[str, ...]
    batch: Batch
    bytes: Count
    plan: PlanSummary
    precision: dict[str, Arithmetic | Literal["absent"]]
    attention: dict[str, str]
    unfused: tuple[str, ...]
    problems: tuple[str, ...]
