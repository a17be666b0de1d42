"""Does a graph decide as its reference does as often as the reference itself does when it trembles, over many images?"""

from typing import Annotated

from msgspec import Meta

from erq_export.contract.accuracy import Share
from erq_export.contract.manifest import Count
from erq_export.contract.records import Record

LEAST_P = 1e-3  # an honest graph fails so often


class DecisionParity(Record, frozen=True, kw_only=True):
    """On the same images: the share that the graph, and the trembling reference, put into the reference's class.

    lost: images that the trembling reference alone keeps there, gained: that the graph alone keeps;  p: how likely at least so
    many are lost if the graph keeps each image at least as readily (one-sided exact test on lost + gained);  perturbation: by
    how much the reference's inputs trembled.
    """

    n_images: Count
    graph: Share
    trembling: Share
    lost: Count
    gained: Count
    p: Annotated[float, Meta(ge=0, le=1)]
    perturbation: float
    least_p: float = LEAST_P

    def says(self) -> str:
        return (
            f"on {self.n_images} images the graph keeps the reference's class on {in_interval(self.graph)}, the reference "
            f"itself, trembling by {self.perturbation:.0e}, on {in_interval(self.trembling)} (p = {self.p:.2g})"
        )

    def problems(self) -> list[str]:
        if self.p >= self.least_p:
            return []
        return [f"decisions: {self.says()}; below p = {self.least_p:g} that is no chance"]


def in_interval(share: Share) -> str:
    """A share with its 95 % interval."""
    return f"{share.value:.1f} % ({share.low:.1f} … {share.high:.1f})"
