"""GPTQ (Frantar et al. 2023): quantize column after column, and let the columns still to come absorb each one's error.

Letters:  W (n, k) weight, Ŵ the same quantized, δ = W − Ŵ;  G = Σ x̂ x̂ᵀ (k, k) over quantized inputs;  A = G + λI
          U (k, k) upper triangular with A = U Uᵀ;  B the columns of a block, R all columns after it
"""

from collections.abc import Callable

import torch
from torch import Tensor

from erq_export.contract.errors import SpecError
from erq_export.contract.formats.affine import Grid

from ..methods.gptq import GptqOptions
from ..percentiles import WEIGHTS
from .problem import Problem, Solution
from .ridge import Ridge
from .weight_grid import weight_grid


def quantize_in_turn(W: Tensor, U: Tensor, grid: Grid, *, block: int) -> Tensor:
    """Integers q (n, k) of W (n, k) on `grid`: columns 0 … k − 1 in turn, errors handed on in blocks of `block` columns.

        published:   w_R ← w_R − (w_j − ŵ_j)/[H⁻¹]_jj · [H⁻¹]_jR      with H⁻¹ of the columns ≥ j         (GPTQ, eq. 2)
        here:        ŵ_j = Q(w_j + (Σ_{i<j} δ_i U_ij) / U_jj)         with every w_j as it was given

    Why they are the same: tr(δ A δᵀ) = ‖δ U‖², and column m of δ U is Σ_{i≤m} δ_i U_im, for U is upper triangular. Once
    columns ≤ j are fixed, the float columns after them can make their columns of δ U zero and change none before them,
    so that is the optimum which the published update moves w_R to: δ_m = −(Σ_{i<m} δ_i U_im)/U_mm, which stands above.
    The trailing block of A has the trailing block of U for its factor (ridge.py), the very reason why GPTQ needs no new
    inverse a column; its Cholesky factor of H⁻¹ = (2A)⁻¹ is U⁻¹/√2, and 2 cancels. So U does: nothing is inverted.
    Blocks change the order of additions alone: `owed` = Σ δ_i U_i· is kept current within B, and R gets its
    share of the whole block by one product. Rows do not see each other. Guarantee: a diagonal A rounds to nearest.
    """
    k, columns, levels = W.shape[1], W.T.contiguous(), grid.map(lambda t: t[:, 0])  # columns (k, n): each in one piece
    q, delta, owed = torch.empty_like(columns), torch.empty_like(columns), torch.zeros_like(columns)  # (k, n)
    for start in range(0, k, block):
        stop = min(start + block, k)
        for j in range(start, stop):
            q[j] = levels.quantize(columns[j] + owed[j] / U[j, j])
            delta[j] = columns[j] - levels.dequantize(q[j])
            owed[j + 1 : stop].addr_(U[j, j + 1 : stop], delta[j])
        owed[stop:].addmm_(U[start:stop, stop:].T, delta[start:stop])
    return q.T


def factor(G: Tensor, damping: float) -> Tensor:
    """U (k, k), upper triangular, with U Uᵀ = G + λI and λ = `damping` times the mean of G's diagonal.

    An input that was never anything but 0 couples to nothing; a 1 on its diagonal keeps the factor regular even where
    all are dead (λ = 0), and its weights round to nearest. SpecError where G + λI is not positive definite in float64.
    """
    inputs = G.diagonal()
    try:
        return Ridge(G + torch.diag((inputs == 0).to(G)), damping * float(inputs.mean())).factor
    except SpecError as e:
        raise SpecError(e.problem, fix="a larger -O damping= (0.01 is the default)") from e


def natural(inputs: Tensor) -> Tensor:
    """The columns as they are: (k,) → (k,)."""
    return torch.arange(len(inputs), device=inputs.device)


def by_activation(inputs: Tensor) -> Tensor:
    """Act-order: columns of strong inputs first, while many columns are left to make up for them: (k,) → (k,)."""
    return inputs.argsort(descending=True, stable=True)


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {"natural": natural, "activation": by_activation}


def solve(problem: Problem, options: GptqOptions) -> Solution:
    """A grid for the float weight; columns in turn on that grid; the bias untouched."""
    W, k = problem.weight, problem.weight.shape[1]
    G = problem.moments.G[:k, :k]  # the bias is no column here
    percentiles = WEIGHTS[options.weight_percentiles]
    grid = weight_grid(W, bits=problem.w_bits, rules=problem.rules, percentiles=percentiles)
    order = ORDERS[options.order](G.diagonal())
    U = factor(G[order][:, order], options.damping)
    q = torch.empty_like(W)
    q[:, order] = quantize_in_turn(W[:, order], U, grid, block=options.block)
    return Solution(q=q, grid=grid, bias=problem.bias)
