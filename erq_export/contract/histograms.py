"""How the integers of a layer are spread: its weights', and those of the inputs that some images give it."""

from typing import Annotated

from msgspec import Meta

from erq_export.contract.manifest import Count
from erq_export.contract.records import Record

MOST_BARS = 64  # of a picture as wide as a phone


class Histogram(Record, frozen=True, kw_only=True):
    """counts[i] of the codes first + i·width … first + (i + 1)·width − 1."""

    first: Annotated[int, Meta(ge=-(2**31), le=2**31)]
    width: Annotated[int, Meta(ge=1, le=2**31)]
    counts: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=MOST_BARS)]

    @property
    def n(self) -> int:
        """How many there are."""
        return sum(self.counts)

    @property
    def last(self) -> int:
        """The largest code that has a bar."""
        return self.first + len(self.counts) * self.width - 1


class InputHistogram(Record, frozen=True, kw_only=True):
    """A layer's input on its grid: codes, the step between them, the least and largest value before rounding, and how many
    values lay beyond the grid's ends, by more than half a step."""

    codes: Histogram
    scale: float
    low: float
    high: float
    beyond: Count


class LayerHistograms(Record, frozen=True, kw_only=True):
    """One layer's. inputs: None where the input stays float."""

    weights: Histogram
    inputs: InputHistogram | None = None


class Histograms(Record, frozen=True, kw_only=True):
    """Every layer's by its path; the inputs are those that n_images of the calibration set give the fake-quant reference."""

    n_images: Count
    layers: dict[str, LayerHistograms]
