"""What a number format is to the rest of the house: a finite set of points, and codes that name them.

A format is a file in this folder: a frozen dataclass whose tensors broadcast against the values that they quantize, a function
that makes the grid of a range (one candidate of a range search), and the row that a bundle's description keeps of it. Range
searches, rounding refinement, the fake-quant model and bundles know no more of a grid than what stands here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

from torch import Tensor


class Format(Protocol):
    """One grid of a format. Codes are numbers in the floating-point type of the values, and have their shape."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def quantize(self, x: Tensor) -> Tensor:
        """The code of the point that each value goes to."""

    def dequantize(self, q: Tensor) -> Tensor:
        """The point that each code names."""

    def fake_quantize(self, x: Tensor) -> Tensor:
        """x̂: each value's point; a tensor that the caller may change."""

    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(down, up, starts_up): the points around each value, and whether the one it goes to is the upper.

        Rounding refinement chooses between the two. Beyond the grid both are its end.
        """

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same change (reshape, index, device) applied to every tensor of the grid."""

    def stored(self) -> dict[str, Tensor]:
        """The tensors that a bundle's file holds; with the row of the description they give the grid back."""


class GridRow(Protocol):
    """What the description of a bundle says of one per-tensor grid."""

    def grid(self, tensors: Mapping[str, Tensor]) -> Format:
        """The grid, from this row and what `stored` gave. KeyError for a tensor that is missing."""


F = TypeVar("F", bound=Format)


def joined(grids: Sequence[F], join: Callable[[list[Tensor]], Tensor]) -> F:
    """One grid made of several of one format: `join` (torch.cat, a choice between them) on each of their tensors in turn."""
    names = [field.name for field in fields(grids[0]) if isinstance(getattr(grids[0], field.name), Tensor)]
    tensors: dict[str, Any] = {name: join([getattr(grid, name) for grid in grids]) for name in names}
    return replace(grids[0], **tensors)
