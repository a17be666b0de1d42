"""One factorisation of G + λI per layer; it serves the activation step and every round of the weight step.

Letters:  A = G + λI (K, K), symmetric positive definite;  U upper triangular with A = U Uᵀ;  R a trailing block of columns,
          S columns before it
For an upper-triangular U the trailing block of the product is the product of the trailing blocks: A_RR = U_RR U_RRᵀ. So
every later, smaller system is already factored. And A_SR = U_SR U_RRᵀ, for U_RS = 0. U is the Cholesky factor of A with
rows and columns reversed, reversed back. Weights have a row per output, so systems stand on the right: X A = B.
"""

import torch
from torch import Tensor

from erq_export.contract.errors import SpecError


class NotPositiveDefinite(SpecError):
    """The ridge is below the rounding of the sums: products are made in float32, so they need not be sums of squares."""


class Ridge:
    """The factored ridge system of one layer. G (K, K) float64 and the ridge on the *summed* Gram matrix."""

    def __init__(self, G: Tensor, ridge_sum: float) -> None:
        A = G.flip(0, 1)
        A.diagonal().add_(ridge_sum)
        L, info = torch.linalg.cholesky_ex(A)  # of the reversed matrix
        if int(info):
            raise NotPositiveDefinite(
                f"G + {ridge_sum:g}·I is not positive definite in float64 (minor {int(info)} of {len(G)})",
                fix="a larger -O ridge, or more calibration images",
            )
        self.factor: Tensor = L.flip(0, 1)  # U (K, K)

    def solve(self, B: Tensor) -> Tensor:
        """B A_RR⁻¹ for the trailing block R as wide as B: (m, r) → (m, r), two triangular solves."""
        U = self.factor[-B.shape[1] :, -B.shape[1] :]
        return self._solve(self._solve(B, U.T, upper=False), U, upper=True)

    def absorb(self, d: Tensor, S: slice, R: slice) -> Tensor:
        """−d A_SR A_RR⁻¹ for an error d (m, |S|) and R all columns after S: (m, |R|), a product and one triangular solve.

        A_SR A_RR⁻¹ = U_SR U_RRᵀ (U_RR U_RRᵀ)⁻¹ = U_SR U_RR⁻¹: what A_SR brings, the first of two solves would take away.
        """
        return -self._solve(d @ self.factor[S, R], self.factor[R, R], upper=True)

    @staticmethod
    def _solve(B: Tensor, T: Tensor, *, upper: bool) -> Tensor:
        """B T⁻¹ for a triangular T."""
        X: Tensor = torch.linalg.solve_triangular(T, B, upper=upper, left=False)
        return X
