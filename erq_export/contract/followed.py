"""What the reference computes when it breaks its ties as a graph of the whole broke them (`validate.parity.whole`)."""

from erq_export.contract.floor import LARGEST, in_words
from erq_export.contract.manifest import Count
from erq_export.contract.records import Record

CODES = "codes"
UNITS = {"logits": " of the largest", "boxes": " pixels", "scores": "", "masks": ""}  # of values, by kind


class Ties(Record, frozen=True, kw_only=True):
    """n choices of one kind;  other: those that the reference by itself makes otherwise;  furthest: how far the furthest of the
    graph's choices is from a tie by the reference's numbers, in multiples of what rounding explains; 0 where all that fell
    otherwise were equals."""

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


class Followed(Record, frozen=True, kw_only=True):
    """A whole graph in ONNX Runtime beside the reference that follows it, on n_images.

    ties: by kind of choice: the codes of layers' inputs; of a detector the best anchors, the proposals that stay, the level that
    a box is pooled from, its class, scores above the threshold, the detections that stay;  values: by kind, the reference's less
    the graph's: logits as a share of the largest; of a detector labels, boxes in pixels, scores, masks as probabilities;  astray:
    what the graph has so many of, and the reference so many others;  n_found: detections of the graph, None of a classifier.
    """

    n_images: Count
    n_found: Count | None = None
    ties: dict[str, Ties]
    values: dict[str, Gap]
    astray: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        counts = (f"ties apart: the graph has {text}" for text in self.astray)
        choices = (
            f"ties apart, {kind}: a choice of the graph is {times(ties.furthest)} as far from a tie as rounding explains"
            for kind, ties in self.ties.items()
            if not ties.explained
        )
        values = (
            f"ties apart, {kind}: the graph is {in_words(value.largest)}{UNITS.get(kind, '')} from the reference, "
            f"rounding explains {value.limit:.1e}"
            for kind, value in self.values.items()
            if not value.largest <= value.limit
        )
        return [*counts, *choices, *values]

    @property
    def near(self) -> str:
        """How near the values are, by kind."""
        kinds = [(kind, unit) for kind, unit in UNITS.items() if kind in self.values]
        return ", ".join(f"{kind} within {in_words(self.values[kind].largest)}{unit}" for kind, unit in kinds)

    @property
    def fell_otherwise(self) -> str:
        """Which ties did."""
        codes, rest = self.ties[CODES], sum(ties.other for kind, ties in self.ties.items() if kind != CODES)
        boxes = f" and {rest} choices of the glue" if len(self.ties) > 1 else ""
        return f"{codes.other} of {codes.n} codes{boxes} fell otherwise, all of them ties up to rounding"

    @property
    def told(self) -> str:
        """What that means, in sentences without the last full stop."""
        if self.problems():
            return f"on {self.n_images} images the graph does not give what the reference gives, ties apart: see the problems"
        found = "" if self.n_found is None else f", {self.n_found} detections in all"
        return (
            f"on each of {self.n_images} images the graph gives what the reference gives{found}, with {self.near}, once the "
            f"reference breaks its ties as the graph does. {self.fell_otherwise}"
        )


def times(multiple: float) -> str:
    """A multiple of what rounding explains, in words."""
    if not multiple:
        return "0 times"
    return f"{multiple:.1e} times" if multiple < LARGEST else "infinitely"
