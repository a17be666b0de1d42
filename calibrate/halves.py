"""A layer's moments over all rows, and over half of the images: what a solve on one half is worth on the other.

Rows of one image resemble each other, so a choice is judged on images that had no part in it, never on other rows of the
same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.sites import Stage
from erq_export.contract.state import State

from .methods.options import Options
from .moments import Moments

FEW_CHUNKS = 4  # below, chunks are cut, so that the halves have as many images


def first_half(chunk_sizes: Sequence[int]) -> list[int]:
    """How many images of each chunk, from its start, belong to the first half: every other chunk, or half of each."""
    if len(chunk_sizes) < FEW_CHUNKS:
        return [(n + (i + 1) % 2) // 2 for i, n in enumerate(chunk_sizes)]
    return [n * ((i + 1) % 2) for i, n in enumerate(chunk_sizes)]


@dataclass(frozen=True, kw_only=True)
class Heavy:
    """The first `n` of an image's `tokens` rows count `times` times each."""

    n: int
    tokens: int
    times: float

    def of(self, x: Tensor) -> Tensor:
        """Those rows of x (images · tokens, k): (images · n, k)."""
        leading: Tensor = x.unflatten(0, (-1, self.tokens))[:, : self.n].flatten(0, 1)
        return leading


def heavy_tokens(stage: Stage, h: State, options: Options) -> Heavy | None:
    """The leading tokens of a stage's hidden state h (images, tokens, D), where the options give them more weight."""
    if not stage.leading or not isinstance(h, Tensor):
        return None
    times = options.weight_of_leading(h.shape[1])
    return Heavy(n=stage.leading, tokens=h.shape[1], times=times) if times != 1 else None


def _weighted(x: Tensor, x_hat: Tensor, heavy: Heavy | None) -> Moments:
    moments = Moments.of(x, x_hat)
    if heavy is not None:
        moments += Moments.of(heavy.of(x), heavy.of(x_hat)).again(heavy.times - 1)
    return moments


@dataclass
class HalvedMoments:
    """Of all rows, and of those of the first half of the images."""

    whole: Moments
    first: Moments

    @classmethod
    def zero(cls, k: int, *, device: torch.device | None = None) -> "HalvedMoments":
        """Empty sums of a layer with k inputs and a bias."""
        return cls(*(Moments.zero(k, bias=True, device=device) for _ in range(2)))

    def add(self, x: Tensor, x_hat: Tensor, first: float, heavy: Heavy | None = None) -> None:
        """Add a chunk of rows x, x_hat (rows, k), image after image; first: the share of them that is of the first half.

        heavy: tokens that count for several rows.
        """
        n = round(first * len(x))
        new = _weighted(x, x_hat, heavy)
        self.whole += new
        if n == len(x):
            self.first += new
        elif n:
            self.first += _weighted(x[:n], x_hat[:n], heavy)

    @property
    def halves(self) -> tuple[Moments, Moments] | None:
        """(first, second); None where one is empty: of a single image."""
        second = self.whole - self.first
        return (self.first, second) if self.first.n_rows and second.n_rows else None
