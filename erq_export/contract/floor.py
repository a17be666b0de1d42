"""How far two correct programs drift apart: the reference's own noise floor, and how an error is said beside it."""

import sys

from erq_export.contract.records import Record

LARGEST = sys.float_info.max  # an error in the place of infinity and NaN, which no record holds
TELLING = 0.5  # relative L2; a limit above it says little, and at 1 nothing: zeros would pass


def in_words(error: float, digits: int = 1, *, before: str = "") -> str:
    """A relative error with the words `before` it, or "not finite"."""
    return f"{before}{error:.{digits}e}" if error < LARGEST else "not finite"


def off(error: float) -> str:
    """How far a problem's output is off."""
    return f"off by {error:.1e} (relative L2)" if error < LARGEST else "not finite"


class NoiseFloor(Record, frozen=True, kw_only=True):
    """The reference against itself: median and all draws, cosine of the outputs (median), smallest e tried that changes
    anything."""

    relative_l2: float
    cosine: float
    draws: tuple[float, ...]
    perturbation: float
