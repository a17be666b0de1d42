"""Graphs of the whole detector in the report: whether they find what the reference finds, and which ties fell otherwise."""

from collections.abc import Iterator, Mapping

from erq_export.contract.followed import Followed, multiple
from erq_export.contract.report import Report

from .tables import Table

WHAT = {
    "codes": "codes of layers' inputs",
    "anchors": "anchors taken as the best of a level",
    "proposals": "candidates that stay as proposals or go",
    "levels": "maps that boxes are pooled from",
    "classes": "classes whose box the next head gets",
    "threshold": "scores above the threshold or below",
    "detections": "candidates that stay as detections or go",
}


def wholes(report: Report) -> dict[str, Followed]:
    """By "TARGET PART"."""
    return {name: one.followed for name, one in report.parts.items() if one.followed is not None}


def finds_the_same(found: Mapping[str, Followed]) -> str:
    """A clause of the verdict."""
    wrong = [name for name, one in found.items() if one.problems()]
    if wrong:
        return f"{' and '.join(wrong)}: other detections than the reference's, ties apart"
    n, pictures = (sum(getattr(one, what) or 0 for one in found.values()) for what in ("n_found", "n_images"))
    return f"the {n} detections of the whole in one graph on {pictures} pictures are the reference's once it breaks ties alike"


def sentences(found: Mapping[str, Followed]) -> Iterator[str]:
    """Of every graph of the whole."""
    for name, one in found.items():
        yield f"{name}: {one.told}."


def ties(found: Mapping[str, Followed]) -> Table:
    """One line a graph and kind of choice."""
    head = ("graph", "choices", "made", "otherwise by the reference alone", "furthest from a tie (1 is rounding)", "")
    return head, [
        [
            name,
            WHAT.get(kind, kind),
            f"{ties.n:,}",
            f"{ties.other:,}",
            multiple(ties.furthest),
            "holds" if ties.explained else "FAILED",
        ]
        for name, one in found.items()
        for kind, ties in one.ties.items()
    ]
