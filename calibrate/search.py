"""The one range search: of several grids, the one that makes the least error, summed over all values as they go by.

Letters:  x values, x̂ the same on a candidate grid;  P (…, T, T) softmax, V (…, T, d) what it multiplies
Weights, layers' inputs, attention's operands and the published softmax differ in their candidates and in what is an error.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

import torch
from torch import Tensor

from erq_export.contract.formats.format import F, Format, joined

Error = Callable[[Format, Tensor, Tensor | None], Tensor]


def of_tensor(grid: Format, x: Tensor, _beside: Tensor | None) -> Tensor:
    """Σ(x̂ − x)² over all values: shape ()."""
    return _squares(grid, x).sum()


def of_outputs(columns: Tensor) -> Error:
    """Σ‖w_j‖² (x̂_j − x_j)² over all values, columns (k,) = ‖w_j‖²: the error of W x̂ where its inputs' do not correlate.

    x (rows, k) or, flat, whole rows of it; shape ().
    """

    def error(grid: Format, x: Tensor, _beside: Tensor | None) -> Tensor:
        return _squares(grid, x).reshape(-1, len(columns)).sum(0) @ columns

    return error


def of_rows(grid: Format, x: Tensor, _beside: Tensor | None) -> Tensor:
    """Σ(x̂ − x)² of every row, where each row has a grid of its own: (g, m) → (g, 1)."""
    return _squares(grid, x).sum(1, keepdim=True)


def of_product(grid: Format, P: Tensor, V: Tensor | None) -> Tensor:
    """‖(P̂ − P) V‖², the error in what the values are multiplied with: shape ()."""
    if V is None:
        raise ValueError("the error of a product needs both of its factors")
    return (grid.fake_quantize(P).sub_(P) @ V).double().square_().sum()


def _squares(grid: Format, x: Tensor) -> Tensor:
    """(x̂ − x)² in float64, in memory of its own."""
    return grid.fake_quantize(x).sub_(x).double().square_()


@dataclass
class Search(Generic[F]):
    """Candidates, the first of which wins ties, and the error that each has made so far.

    The tensors of a candidate have the shape of an error: () where one grid serves all values, (g, 1) where each of g rows
    has its own, which is then chosen for itself.
    """

    candidates: list[F]
    error: Error
    errors: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, beside: Tensor | None = None) -> None:
        """The next values; beside: what they are multiplied with, for `of_product`. In any order, in pieces of any size."""
        now = [self.error(grid, x, beside) for grid in self.candidates]
        self.errors = [a + b for a, b in zip(self.errors, now, strict=True)] if self.errors else now

    def best(self) -> F:
        """The candidate of least error, row by row where rows have their own."""
        if not self.errors:
            raise ValueError("a search needs a candidate and a value")
        choice = torch.stack(self.errors).argmin(0)[None]
        return joined(self.candidates, lambda tensors: torch.stack(tensors).gather(0, choice)[0])
