"""What a detector finds, in float and quantized: COCO's average precision of both, and how alike they are."""

from typing import Annotated

from msgspec import Meta

from erq_export.contract.accuracy import Percent
from erq_export.contract.manifest import Count
from erq_export.contract.parity import (
    INTEGER_GEMMS,
    AccumulatorParity,
    CodeParity,
    FloatParity,
    LayerParity,
    WeightParity,
)
from erq_export.contract.records import Record

Base64 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]*={0,2}$(?!\n)")]
Points = Annotated[float, Meta(ge=-100, le=100)]


class Averages(Record, frozen=True, kw_only=True):
    """Average precision in per cent: mean over IoU 0.50 … 0.95, at 0.50, at 0.75; by the things' size, None where none is."""

    ap: Percent
    ap50: Percent
    ap75: Percent
    small: Percent | None = None
    medium: Percent | None = None
    large: Percent | None = None


class Change(Record, frozen=True, kw_only=True):
    """Points of AP above the float detector's on the same pictures, and the 95 % interval of a paired bootstrap over them."""

    value: Points
    low: Points
    high: Points

    @property
    def told(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} … {self.high:+.2f})"


class Judged(Record, frozen=True, kw_only=True):
    """One detector, or one way to run it; its changes are None for the float one."""

    box: Averages
    mask: Averages
    box_change: Change | None = None
    mask_change: Change | None = None


class Likeness(Record, frozen=True, kw_only=True):
    """How many of the reference's n detections a graph finds too, and on how many of n_pictures it finds those and no others."""

    n: Count
    found: Count
    n_pictures: Count
    alike: Count

    @property
    def told(self) -> str:
        return f"{self.found} of the reference's {self.n} detections, {self.alike} of {self.n_pictures} pictures alike as a whole"


class Example(Record, frozen=True, kw_only=True):
    """One picture with what was found drawn into it, in float and as the reference: JPEG files in base64."""

    name: str
    exact: Base64
    reference: Base64


class Detection(Record, frozen=True, kw_only=True):
    """n_images of n_given pictures fit on a canvas and were looked at.

    graphs: by the runner's name;  as_reference: how alike each is to the reference, on a few pictures;  trembling: by
    the runner's name, how alike the reference is to itself on those when its layers' inputs tremble by a rounding of what that
    runner computes in, which no correct program can be asked to beat.
    """

    n_images: Count
    n_given: Count
    canvases: tuple[tuple[Count, Count], ...]  # height, width; calibration was on the first
    n_on: tuple[Count, ...]  # how many of the n_images lie on each
    exact: Judged
    reference: Judged
    graphs: dict[str, Judged]
    as_reference: dict[str, Likeness]
    trembling: dict[str, Likeness] = {}
    examples: tuple[Example, ...] = ()


class PartParity(Record, frozen=True, kw_only=True):
    """One part's graph in ONNX Runtime beside the part in PyTorch, on what the reference gives it: n rows of images or boxes.

    between: what reaches each layer, and leaves the part, if all layers before it were exact;
    executed: what multiplies each layer, empty where the graph is for another;  outputs: ‖Δy‖/‖y‖ of each, where codes that
    round the other way have gone through the whole part.
    """

    n: Count
    weights: WeightParity
    layers: tuple[LayerParity, ...]
    between: FloatParity
    executed: dict[str, str]
    outputs: dict[str, float]

    def problems(self) -> list[str]:
        layers = (problem for layer in self.layers for problem in layer.problems())
        multiplied = (
            f"{path}: claimed integer, ONNX Runtime multiplies it in float ({op})"
            for path, op in self.executed.items()
            if op not in INTEGER_GEMMS
        )
        return [*self.weights.problems(), *layers, *multiplied, *self.between.problems()]

    @property
    def codes(self) -> CodeParity:
        """Of all layers."""
        every = [layer.codes for layer in self.layers]
        return CodeParity(
            n=sum(c.n for c in every),
            mismatches=sum(c.mismatches for c in every),
            max_lsb=max((c.max_lsb for c in every), default=0),
        )

    @property
    def sums(self) -> AccumulatorParity:
        """Of all layers."""
        every = [layer.accumulators for layer in self.layers]
        return AccumulatorParity(
            n=sum(a.n for a in every), mismatches=sum(a.mismatches for a in every), beyond=sum(a.beyond for a in every)
        )
