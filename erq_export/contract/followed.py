"""What the reference gives when it breaks its ties as a whole graph broke them (`validate.parity.whole`)."""

from erq_export.contract.floor import LARGEST, in_words
from erq_export.contract.manifest import Count
from erq_export.contract.records import Record

CODES = "codes"
UNITS = {"outputs": " of the largest", "boxes": " pixels", "scores": "", "masks": ""}  # of values, by kind


class Ties(Record, frozen=True, kw_only=True):
    """n choices of one kind;  other: those that the reference by itself makes otherwise;  furthest: how far the furthest of the
    graph's choices is from a tie by the reference's numbers, in multiples of what rounding explains; 0 where all that differed
    were equals."""

    n: Count
    other: Count
    furthest: float

    @property
    def explained(self) -> bool:
        """By rounding."""
        return self.furthest <= 1


class Gap(Record, frozen=True, kw_only=True):
    """The largest difference of one kind of values, and what rounding explains."""

    largest: float
    limit: float

    @property
    def explained(self) -> bool:
        """By rounding."""
        return self.largest <= self.limit


class Followed(Record, frozen=True, kw_only=True):
    """A whole graph in ONNX Runtime beside the reference that follows it, on n_images.

    ties: by kind of choice: the codes of layers' inputs; of a detector the best anchors, the proposals that stay, the level that
    a box is pooled from, its class, scores above the threshold, the detections that stay;  values: by kind, the reference's less
    the graph's: a classifier's outputs as a share of the largest; of a detector labels, boxes in pixels, scores, masks as
    probabilities;  astray: what the graph has so many of, and the reference so many others;  as_deployed: False where ONNX
    Runtime gives other outputs when it does not return codes;  n_found: detections of the graph, None of a classifier.
    """

    n_images: Count
    n_found: Count | None = None
    ties: dict[str, Ties]
    values: dict[str, Gap]
    astray: tuple[str, ...] = ()
    as_deployed: bool = True

    def problems(self) -> list[str]:
        counts = (f"ties apart: the graph has {text}" for text in self.astray)
        choices = (
            f"ties apart, {kind}: the graph chooses otherwise where rounding does not explain it, "
            f"{multiple(ties.furthest)} times too far from a tie"
            for kind, ties in self.ties.items()
            if not ties.explained
        )
        values = (
            f"ties apart, {kind}: the graph's differ by {in_words(value.largest)}{UNITS.get(kind, '')} from the reference's, "
            f"rounding explains {value.limit:.1e}"
            for kind, value in self.values.items()
            if not value.explained
        )
        return [*counts, *choices, *values]

    @property
    def near(self) -> str:
        """By how much values differ, by kind."""
        kinds = [(kind, unit) for kind, unit in UNITS.items() if kind in self.values]
        return ", ".join(f"{kind} by at most {in_words(self.values[kind].largest)}{unit}" for kind, unit in kinds)

    @property
    def otherwise(self) -> str:
        """What the reference chooses by itself."""
        codes = self.ties.get(CODES, Ties(n=0, other=0, furthest=0.0))
        glue = sum(ties.other for kind, ties in self.ties.items() if kind != CODES)
        rest = f" and {glue} times between boxes" if len(self.ties) > 1 else ""
        other = "; without its codes shown ONNX Runtime gives other outputs, of which this says nothing"
        shown = "" if self.as_deployed else other
        return (
            f"by itself the reference chooses otherwise for {codes.other:,} of {codes.n:,} codes{rest}, each time within "
            f"rounding of a tie{shown}"
        )

    @property
    def told(self) -> str:
        """What that means, in a sentence without its full stop."""
        if self.problems():
            return f"on {self.n_images} images the graph does not give what the reference gives, ties apart: see the problems"
        found = "" if self.n_found is None else f", {self.n_found} detections in all"
        return (
            f"once the reference breaks its ties as the graph does, both give the same on each of {self.n_images} images{found} "
            f"({self.near}); {self.otherwise}"
        )


def multiple(furthest: float) -> str:
    """Of what rounding explains, in words."""
    if furthest >= LARGEST:
        return "infinitely many"
    return f"{furthest:.2g}" if furthest < 100 else f"{furthest:.0e}"
