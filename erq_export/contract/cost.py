"""What a stage of a run cost, as its report and its manifest have it."""

from erq_export.contract.records import Record


class StageCost(Record, frozen=True, kw_only=True):
    """wall_s seconds; peak_mib resident memory of the whole process while the stage ran, sampled every 50 ms."""

    name: str
    wall_s: float
    peak_mib: float
