"""What was seen of a graph's choices and values so far, by kind, over all pictures."""

from dataclasses import dataclass, field

from torch import Tensor

from erq_export.contract.floor import LARGEST
from erq_export.contract.followed import Apart, Ties

from .ties import Chosen, worst


class Astray(Exception):
    """The graph has so many values where the reference has so many others: there is no following it on this picture."""


@dataclass
class Ledger:
    """By kind of choice, and by kind of value."""

    ties: dict[str, Ties] = field(default_factory=dict)
    values: dict[str, Apart] = field(default_factory=dict)

    def tie(self, kind: str, chosen: Chosen, limit: float) -> None:
        """Further choices of a kind."""
        old = self.ties.get(kind, Ties(n=0, other=0, furthest=0.0, limit=limit))
        self.ties[kind] = Ties(
            n=old.n + chosen.n,
            other=old.other + chosen.other,
            furthest=max(old.furthest, chosen.furthest),
            limit=limit,
        )

    def apart(self, kind: str, own: Tensor, found: Tensor, limit: float) -> None:
        """Further values of a kind. Astray where there are not as many of both."""
        largest = worst((own - found).abs()) if own.shape == found.shape else LARGEST
        old = self.values.get(kind, Apart(largest=0.0, limit=limit))
        self.values[kind] = Apart(largest=max(old.largest, largest), limit=limit)
        if own.shape != found.shape:
            raise Astray
