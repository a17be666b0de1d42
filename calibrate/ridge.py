"""One factorisation of G + λI per layer; it serves the activation step and every round of the weight step.

Letters:  A = G + λI (K, K), symmetric positive definite;  U upper triangular with A = U Uᵀ;  R a trailing block of columns
For an upper-triangular U the trailing block of the product is the product of the trailing blocks: A_RR = U_RR U_RRᵀ. So
every later, smaller system is already factored. U is the Cholesky factor of A with rows and columns reversed, reversed
back; here everything stays reversed, where the trailing block is a leading one.
"""

import torch
from torch import Tensor

from erq_export.errors import SpecError


class Ridge:
    """The factored ridge system of one layer. G (K, K) float64 and the ridge on the *summed* Gram matrix."""

    def __init__(self, G: Tensor, ridge_sum: float) -> None:
        A = G.flip(0, 1)
        A.diagonal().add_(ridge_sum)
        self._L, info = torch.linalg.cholesky_ex(A)  # of the reversed matrix
        if int(info):
            raise SpecError(
                f"G + {ridge_sum:g}·I is not positive definite in float64 (minor {int(info)} of {len(G)})",
                fix="a larger --ridge, or more calibration images",
            )

    @property
    def factor(self) -> Tensor:
        """U (K, K), upper triangular."""
        U: Tensor = self._L.flip(0, 1)
        return U

    def solve(self, B: Tensor) -> Tensor:
        """A_RR⁻¹ B for the trailing block R with len(B) columns: B (r, m) → (r, m), two triangular solves."""
        L = self._L[: len(B), : len(B)]
        return torch.cholesky_solve(B.flip(0), L).flip(0)
