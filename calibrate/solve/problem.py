"""One layer's problem, and what solves it: the contract between the calibration loop and a method's solver.

Letters:  W (n, k) weight;  K = k + 1, the bias is the last column;  q (n, k) integers
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.formats.affine import Grid
from erq_export.contract.sites import Role
from erq_export.contract.targets import GridRules

from ..moments import Moments
from ..wide import WideMoments


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One layer, after the activation grids are fixed: W (n, k) and bias (n,) float64, and the moments of its inputs.

    halves: the same over either half of the images; None where there is one image.
    """

    weight: Tensor
    bias: Tensor
    moments: Moments | WideMoments
    role: Role
    w_bits: int
    rules: GridRules
    halves: tuple[Moments, Moments] | tuple[WideMoments, WideMoments] | None = None

    @property
    def augmented(self) -> Tensor:
        """[W b] (n, K)."""
        return torch.cat([self.weight, self.bias[:, None]], 1)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Integers q (n, k) as float64, their grid with tensors (n, 1), and the bias (n,) that goes with them.

    ridge: λ, where the method has one.
    """

    q: Tensor
    grid: Grid
    bias: Tensor
    ridge: float | None = None

    @property
    def augmented(self) -> Tensor:
        """[Ŵ b] (n, K), dequantized."""
        return torch.cat([self.grid.dequantize(self.q), self.bias[:, None]], 1)
