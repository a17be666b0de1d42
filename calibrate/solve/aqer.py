"""Activation-quantization error reduction (ERQ's Aqer): one ridge regression per layer.

Letters:  W (n, K) weight, a bias is its last column;  x (k,) float input;  x̃ (K,) the same input quantized, with a 1 for the bias
          G = Σ x̃ x̃ᵀ (K, K)       D = Σ (x − x̂) x̃ᵀ (k, K)        sums over all calibration rows
"""

import torch
from torch import Tensor

from .ridge import Ridge
from .rows import by_rows


def weight_shift(W: Tensor, D: Tensor, ridge: Ridge) -> Tensor:
    """Shift the weight so that quantized inputs give the full-precision output (ERQ section 4.1, closed form).

        minimise over S:  Σ‖(W + S) x̃ − W [x; 1]‖² + λ‖S‖²
        gradient = 0:     S (G + λI) = W₀ D        hence  S = W₀ D (G + λI)⁻¹        (n, K)

    W₀ (n, k) are the weight columns: the 1 of the bias is not quantized and has no error. Data enter through G and D
    alone; G + λI is symmetric and positive definite. The system is solved for W₀ D or for D, whichever has fewer rows.
    """
    W0 = W[:, : len(D)]
    if len(W0) <= len(D):
        return torch.cat(by_rows(lambda rows: ridge.solve(W0[rows] @ D), W0))
    shares = torch.cat(by_rows(lambda rows: ridge.solve(D[rows]), D))  # (k, K): what a unit of each weight shifts
    return torch.cat(by_rows(lambda rows: W0[rows] @ shares, W0))
