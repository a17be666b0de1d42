"""Graphs of the whole detector in the report: whether they find what the reference finds, and which ties fell otherwise."""

from collections.abc import Iterator, Mapping

from erq_export.contract.followed import Followed
from erq_export.contract.parity import in_words
from erq_export.contract.report import Report

from .tables import Table

WHAT = {
    "codes": "inputs of layers, rounded to codes",
    "anchors": "anchors among the best of a level",
    "proposals": "boxes that stay as proposals",
    "levels": "maps that boxes are pooled from",
    "classes": "classes whose box the next head gets",
    "scores": "scores that are high enough",
    "detections": "boxes that stay as detections",
}


def wholes(report: Report) -> dict[str, Followed]:
    """By "TARGET PART"."""
    return {
        f"{name} {part}": one.followed
        for name, target in report.targets.items()
        for part, one in target.parts.items()
        if one.followed is not None
    }


def finds_the_same(found: Mapping[str, Followed]) -> str:
    """A clause of the verdict."""
    wrong = [name for name, one in found.items() if one.problems()]
    if wrong:
        return f"{' and '.join(wrong)} finds other things than the reference, ties apart"
    n, pictures = (sum(getattr(one, what) for one in found.values()) for what in ("n_found", "n_pictures"))
    return f"the whole in one graph finds the reference's {n} things on {pictures} pictures, ties apart"


def sentences(found: Mapping[str, Followed]) -> Iterator[str]:
    """Of every graph of the whole."""
    for name, one in found.items():
        yield f"{name}: {one.told}."


def ties(found: Mapping[str, Followed]) -> Table:
    """One line a graph and kind of choice."""
    head = ("graph", "choices", "made", "otherwise by the reference", "furthest from a tie", "rounding explains")
    return head, [
        [
            name,
            WHAT.get(kind, kind),
            str(ties.n),
            str(ties.other),
            in_words(ties.furthest),
            f"{ties.limit:.1e}",
        ]
        for name, one in found.items()
        for kind, ties in one.ties.items()
    ]
