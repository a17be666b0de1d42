"""What was seen of a graph's choices and values so far, by kind, over all images."""

from dataclasses import dataclass, field

from torch import Tensor

from erq_export.contract.floor import LARGEST
from erq_export.contract.followed import Followed, Gap, Ties

from .ties import Chosen, worst


class Astray(Exception):
    """The graph has so many of something where the reference has so many others: no following it on this image."""


@dataclass
class Ledger:
    """By kind of choice, and by kind of value; astray: counts that differ, in words;  as_deployed: does the graph give the same
    to the bit when it does not show its choices?"""

    ties: dict[str, Ties] = field(default_factory=dict)
    values: dict[str, Gap] = field(default_factory=dict)
    astray: list[str] = field(default_factory=list)
    as_deployed: bool = True

    def tie(self, kind: str, chosen: Chosen) -> None:
        """Further choices of a kind."""
        old = self.ties.get(kind, Ties(n=0, other=0, furthest=0.0))
        furthest = max(old.furthest, chosen.furthest)
        self.ties[kind] = Ties(n=old.n + chosen.n, other=old.other + chosen.other, furthest=furthest)

    def gap(self, kind: str, own: Tensor, found: Tensor, limit: float) -> None:
        """Further values of a kind. Astray where there are not as many of both."""
        self.as_many(kind, len(own), len(found))
        largest = worst((own - found).abs()) if own.shape == found.shape else LARGEST
        old = self.values.get(kind, Gap(largest=0.0, limit=limit))
        self.values[kind] = Gap(largest=max(old.largest, largest), limit=limit)

    def as_many(self, kind: str, own: int, found: int) -> None:
        """Astray where these are not equal."""
        if own != found:
            self.astray.append(f"{found} {kind} where the reference has {own}")
            raise Astray

    def followed(self, n_images: int, n_found: int | None = None) -> Followed:
        """What came of it."""
        return Followed(
            n_images=n_images,
            n_found=n_found,
            ties=self.ties,
            values=self.values,
            astray=tuple(self.astray),
            as_deployed=self.as_deployed,
        )
