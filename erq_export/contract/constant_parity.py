"""Whether the numbers that a file holds beside its weights are the calibrated ones, to the last digit."""

from typing import Literal

from erq_export.contract.floor import LARGEST
from erq_export.contract.manifest import Count
from erq_export.contract.records import Record, Sha256

ConstantName = Literal[
    "epsilon",
    "norm weight",
    "norm bias",
    "clip",
    "input scale",
    "zero point",
    "dequantizer scale",
    "weight scale",
    "bias",
]
# The last four stand behind the quantizer, in the order of the forward pass.
BEHIND: tuple[ConstantName, ...] = ("dequantizer scale", "weight scale", "bias")


class ConstantDifference(Record, frozen=True, kw_only=True):
    """`mismatches` of n numbers differ; the first of them as the file has it (None: it has none) and as it was calibrated."""

    path: str
    name: ConstantName
    n: Count
    mismatches: Count
    found: float | None
    expected: float

    def problem(self) -> str:
        if self.found is None:
            return f"{self.path}: the file has no {self.name} where one belongs ({self.expected:.9g})"
        which = "" if self.n == 1 else f" ({self.mismatches} of {self.n} differ, this is the first)"
        found = f"{self.found:.9g}" if abs(self.found) < LARGEST else "no number"
        return f"{self.path}: its {self.name} is {found} in the file, {self.expected:.9g} was calibrated{which}"


class ConstantParity(Record, frozen=True, kw_only=True):
    """n tensors compared number by number, as the file's type holds them; those that differ."""

    n: Count = 0
    different: tuple[ConstantDifference, ...] = ()

    def problems(self) -> list[str]:
        return [difference.problem() for difference in self.different]


class OriginParity(Record, frozen=True, kw_only=True):
    """The hash of the bundle that a graph is held against, and those that its manifest and the file itself name."""

    bundle: Sha256 | None = None
    manifest: Sha256 | None = None
    file: str | None = None

    def problems(self) -> list[str]:
        named = {"manifest.json": self.manifest, "model.onnx": self.file}
        return [
            f"{name} is of another calibration: it names the bundle {of[:12]}…, it is held against {self.bundle[:12]}…"
            for name, of in named.items()
            if of is not None and self.bundle is not None and of != self.bundle
        ]
