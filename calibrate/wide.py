"""What ERQ sees of a layer with more inputs than rows of data: the rows themselves, which are smaller than their sums.

Letters:  X̃ (N, K) the rows x̃ = [x̂; 1], quantized;  E (N, k) the rows x − x̂;  G = X̃ᵀX̃, D = EᵀX̃ (moments);  N < K = k + 1
A detector's first box layer has 12,544 inputs and at most 1,000 boxes an image: 50 MB of rows, and 1.2 GB for each of six sums.
Where so many rows come that their systems (`solve.wide_ridge`) would be larger than that of the sums, sums are made of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erq_export.contract.memory import require_memory

from .halves import HalvedMoments, Heavy
from .moments import Moments

F64 = 8  # bytes
SUMS = 6  # G, D and C, of all rows and of the first half


@dataclass(frozen=True, kw_only=True)
class WideMoments:
    """Rows in place of `Moments`: x̂ and x − x̂ (N, k) float32."""

    x_hat: Tensor
    e: Tensor

    @property
    def n_rows(self) -> int:
        return len(self.x_hat)

    @property
    def X(self) -> Tensor:
        """X̃ (N, K) float64."""
        return torch.cat([self.x_hat.double(), self.x_hat.new_ones(self.n_rows, 1).double()], 1)

    @property
    def G(self) -> Tensor:
        """Σ x̃ x̃ᵀ (K, K) float64, made anew: for who needs it whole, once."""
        X = self.X
        return X.T @ X

    def output_errors(self, W: Tensor, W_hats: Sequence[Tensor]) -> list[float]:
        """Σ‖W x̃₀ − Ŵ x̃‖² of each Ŵ (n, K), over all rows: ‖(W − Ŵ) X̃ᵀ + W₀ Eᵀ‖², W₀ the weight columns of W."""
        X, of_inputs = self.X, W[:, : self.e.shape[1]] @ self.e.double().T  # (n, N)
        return [float(((W - W_hat) @ X.T + of_inputs).square().sum()) for W_hat in W_hats]


def most_rows(k: int) -> int:
    """N up to which the rows' systems are smaller: one N × N factor for each round of Wqer and one for all, against one K × K."""
    return int((k + 1) / math.sqrt((k + 1).bit_length() + 1))


@dataclass
class WideHalves:
    """Rows in place of `HalvedMoments`, as long as there are few."""

    k: int
    rows: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = field(default_factory=lambda: ([], []))
    sums: HalvedMoments | None = None

    def add(self, x: Tensor, x_hat: Tensor, first: float, heavy: Heavy | None = None) -> None:
        """A chunk of rows x, x_hat (rows, k) of one image; first: 1 where the image is of the first half, else 0."""
        if heavy is not None or first not in (0, 1):
            raise ValueError("rows of a layer that is wide are those of one image, and count once")
        if self.sums is None and self._n_rows() + len(x) > most_rows(self.k):
            self.sums = self._summed(x)
        if self.sums is None:
            self.rows[0 if first else 1].append((x_hat, x - x_hat))
        else:
            self.sums.add(x, x_hat, first)

    @property
    def whole(self) -> Moments | WideMoments:
        return _joined([*self.rows[0], *self.rows[1]]) if self.sums is None else self.sums.whole

    @property
    def halves(self) -> tuple[Moments, Moments] | tuple[WideMoments, WideMoments] | None:
        """(first, second); None where one is empty: of a single image."""
        if self.sums is not None:
            return self.sums.halves
        first, second = self.rows
        return (_joined(first), _joined(second)) if first and second else None

    def _n_rows(self) -> int:
        return sum(len(x_hat) for half in self.rows for x_hat, _ in half)

    def _summed(self, like: Tensor) -> HalvedMoments:
        """Sums of the rows so far, which are then given up. MachineError where they do not fit into memory."""
        if not like.is_cuda:
            require_memory(
                SUMS * F64 * (self.k + 1) ** 2,
                f"the moments of a layer of {self.k} inputs and more rows than that",
                fix="fewer images: --calib N",
            )
        sums = HalvedMoments.zero(self.k, device=like.device)
        for first, half in zip((1.0, 0.0), self.rows, strict=True):
            for x_hat, e in half:
                sums.add(x_hat + e, x_hat, first)
            half.clear()
        return sums


def _joined(rows: Sequence[tuple[Tensor, Tensor]]) -> WideMoments:
    x_hat, e = zip(*rows, strict=True)
    return WideMoments(x_hat=torch.cat(x_hat), e=torch.cat(e))
