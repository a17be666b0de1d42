"""What the reference finds when it breaks its ties as a graph of the whole detector broke them (`validate.parity.whole`)."""

from erq_export.contract.floor import in_words
from erq_export.contract.manifest import Count
from erq_export.contract.records import Record

CODES = "codes"
UNITS = {"boxes": " pixels", "scores": "", "masks": ""}  # of values, by kind


class Ties(Record, frozen=True, kw_only=True):
    """n choices of one kind;  other: those that the reference by itself makes otherwise;  furthest: by how much the worst of the
    graph's choices contradicts the reference's numbers, 0 where equals or halves fell otherwise;  limit: what rounding explains.
    """

    n: Count
    other: Count
    furthest: float
    limit: float


class Apart(Record, frozen=True, kw_only=True):
    """The largest difference of one kind of values, and what rounding explains."""

    largest: float
    limit: float


class Followed(Record, frozen=True, kw_only=True):
    """One graph of the whole in ONNX Runtime, on n_pictures, on which it finds n_found things.

    ties: by kind of choice: codes of layers' inputs, anchors, proposals, classes, detections;  values: by kind, boxes in
    pixels, scores and masks as probabilities: what the reference finds less what the graph finds.
    """

    n_pictures: Count
    n_found: Count
    ties: dict[str, Ties]
    values: dict[str, Apart]

    def problems(self) -> list[str]:
        choices = (
            f"the whole detector's {kind}: a choice of the graph is {in_words(ties.furthest)} from a tie, rounding explains "
            f"{ties.limit:.1e}"
            for kind, ties in self.ties.items()
            if not ties.furthest <= ties.limit
        )
        values = (
            f"the whole detector's {kind}: {in_words(value.largest)} from the reference that chooses alike, rounding explains "
            f"{value.limit:.1e}"
            for kind, value in self.values.items()
            if not value.largest <= value.limit
        )
        return [*choices, *values]

    @property
    def told(self) -> str:
        """What that means, in sentences without the last full stop."""
        if self.problems():
            return (
                f"on {self.n_pictures} pictures it does not find what the reference finds, ties apart, see the problems"
            )
        codes, rest = self.ties[CODES], sum(ties.other for kind, ties in self.ties.items() if kind != CODES)
        near = ", ".join(
            f"{kind} within {in_words(self.values[kind].largest)}{unit}"
            for kind, unit in UNITS.items()
            if kind in self.values
        )
        return (
            f"on each of {self.n_pictures} pictures it finds what the reference finds, {self.n_found} things in all, ties apart: "
            f"{near} of those of the reference that breaks ties as it does. {codes.other} of {codes.n} codes lay halfway between "
            f"two, {rest} choices between boxes were choices between equals, up to rounding"
        )
