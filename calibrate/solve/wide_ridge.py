"""The ridge systems of a layer with more inputs than rows, in the N × N form that the rows have among themselves.

Letters:  X (N, K) rows of data, X_S and X_R their columns S and R;  A = XᵀX + λI (K, K);  B_R = X_R X_Rᵀ + λI (N, N)
Why:      X_R A_RR⁻¹ = B_R⁻¹ X_R   for   (X_R X_Rᵀ + λI) X_R = X_R (X_Rᵀ X_R + λI).   Hence
            Aqer   W₀ D A⁻¹ = W₀ Eᵀ X A⁻¹ = (W₀ Eᵀ) B⁻¹ X
            Wqer   −d A_SR A_RR⁻¹ = −(d X_Sᵀ) X_R A_RR⁻¹ = −(d X_Sᵀ) B_R⁻¹ X_R       A_SR = X_Sᵀ X_R, off the diagonal
Every R of the rounds is factored once: a dozen Cholesky factors of N × N instead of one of K × K. What stays K × K while such a
layer is solved is G itself, which the steps over whole rows read (`row_steps`).
"""

import torch
from torch import Tensor

from ..moments import Moments
from ..wide import WideMoments
from .aqer import weight_shift
from .ridge import NotPositiveDefinite, Ridge
from .wqer import halves


class WideRidge:
    """The factored systems. X (N, K) float64 and the ridge on *sums*, which is what makes A regular: N < K."""

    def __init__(self, X: Tensor, ridge_sum: float) -> None:
        self.X = X
        starts = [0, *(R.start for _, R in halves(X.shape[1]))]
        self.factors = {start: self._factor(X[:, start:], ridge_sum) for start in starts}

    @staticmethod
    def _factor(X: Tensor, ridge_sum: float) -> Tensor:
        B = X @ X.T
        B.diagonal().add_(ridge_sum)
        L: Tensor
        L, info = torch.linalg.cholesky_ex(B)
        if int(info):
            raise NotPositiveDefinite(
                f"X Xᵀ + {ridge_sum:g}·I is not positive definite in float64 (minor {int(info)} of {len(B)})",
                fix="a larger -O ridge",
            )
        return L

    def _right(self, T: Tensor, R: slice) -> Tensor:
        """T B_R⁻¹ X_R: (m, N) → (m, |R|)"""
        out: Tensor = torch.cholesky_solve(T.T, self.factors[R.start]).T @ self.X[:, R]
        return out

    def shift(self, W0: Tensor, e: Tensor) -> Tensor:
        """W₀ D A⁻¹ (n, K) of the weight columns W₀ (n, k) and the rows e (N, k) = x − x̂."""
        return self._right(W0 @ e.double().T, slice(0, self.X.shape[1]))

    def absorb(self, d: Tensor, S: slice, R: slice) -> Tensor:
        """As `Ridge.absorb`: −d A_SR A_RR⁻¹ (m, |R|)."""
        return -self._right(d @ self.X[:, S].T, R)


def ridge_of(moments: Moments | WideMoments, G: Tensor, ridge_sum: float) -> Ridge | WideRidge:
    """The systems of a layer in the form that is smaller. G (K, K) is read where the layer is not wide."""
    return WideRidge(moments.X, ridge_sum) if isinstance(moments, WideMoments) else Ridge(G, ridge_sum)


def shift_of(W: Tensor, moments: Moments | WideMoments, ridge: Ridge | WideRidge) -> Tensor:
    """Aqer's S (n, K) for [W b] (n, K): `weight_shift`, or the same in the other form."""
    if isinstance(moments, Moments) and isinstance(ridge, Ridge):
        return weight_shift(W, moments.D, ridge)
    if isinstance(moments, WideMoments) and isinstance(ridge, WideRidge):
        return ridge.shift(W[:, : moments.e.shape[1]], moments.e)
    raise TypeError("moments and ridge are of different forms")
