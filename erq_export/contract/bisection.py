"""bisect.json: where, in the order of the forward pass, a graph first differs from what was calibrated."""

from typing import ClassVar, Literal

from erq_export.contract.manifest import Count
from erq_export.contract.parity import ParityReport
from erq_export.contract.records import FileRecord, Record, Sha256

Kind = Literal[
    "origin",
    "epsilon",
    "norm weight",
    "norm bias",
    "float operators",
    "clip",
    "input scale",
    "zero point",
    "codes",
    "dequantizer scale",
    "weight integers",
    "weight scale",
    "bias",
    "sums",
    "kernel",
    "output",
    "block output",
    "whole model",
    "decisions",
    "ties apart",
]


class Difference(Record, frozen=True, kw_only=True):
    """What differs: the block, the site in it (a module path; empty for the block or the model as a whole), the kind.

    found, bound: the figure that is beyond its bound: a relative error, a number of wrong integers, or (None) a constant, which
    `says` quotes with the one that was calibrated.
    """

    block: str
    site: str
    kind: Kind
    found: float | None
    bound: float | None
    says: str


class Bisection(FileRecord, frozen=True, kw_only=True):
    """One graph of a run, walked from reference to graph; `first` is None where nothing differs.

    foreign: files that are not those that the run wrote, or not of one calibration, in words;  n_differences: all that was found;
    checked: how much was compared, by kind;  summary: the parity report in one sentence;  reproduction: the files that lie
    beside this one;  not_executed: what of the chain could not be run here.
    """

    WHAT: ClassVar[str] = "bisection"

    target: str
    graph_sha256: Sha256
    bundle_sha256: Sha256
    n_images: Count
    foreign: tuple[str, ...]
    first: Difference | None
    n_differences: Count
    checked: dict[str, Count]
    summary: str
    reproduction: tuple[str, ...] = ()
    not_executed: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return self.first is None and not self.foreign

    def says(self) -> str:
        """The verdict in one or two sentences."""
        foreign = "".join(f"{text}. " for text in self.foreign)
        if self.first is None:
            return f"{foreign}{self.target}: nothing differs: {self.summary}"
        place = f"{self.first.block}, {self.first.site}" if self.first.site else self.first.block
        return (
            f"{foreign}{self.target}: the first difference is in {place} ({self.first.kind}): {self.first.says} "
            f"({self.n_differences} in all)"
        )


def checked(report: ParityReport) -> dict[str, int]:
    """How much a report compared, by kind."""
    codes = [*(layer.codes for layer in report.layers), *(operand.codes for operand in report.operands)]
    sums = [*(layer.accumulators for layer in report.layers), *(product.sums for product in report.products)]
    return {
        "weight integers": report.weights.n_integers,
        "constants": report.constants.n,
        "codes": sum(c.n for c in codes),
        "sums": sum(s.n for s in sums),
        "layers": len(report.layers),
        "operands": len(report.operands),
        "float operators": len(report.between.relative_l2),
        "blocks": len(report.blocks),
    }
