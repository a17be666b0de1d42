"""ERQ (ICML 2024): absorb the activations' error in the weights, then quantize the weights half by half.

Letters:  W (n, K) weight with the bias as last column;  λ the paper's ridge;  G, D, N the layer's moments
"""

from erq_export.affine import quantize
from erq_export.models.family import Role

from .aqer import weight_shift
from .method import Problem, Solution
from .ridge import Ridge
from .rounding import REFINEMENTS
from .weight_grid import weight_grid
from .wqer import quantize_columns


def ridges(role: Role, λ: float) -> tuple[float, float]:
    """(Aqer, Wqer): what is added to the diagonal of the summed Gram matrix (erq.md 7.3, 8.2, behaviour of the authors'
    code): 0.1 λ; the patch embedding λ; the head, whose N rows are fewer than its columns, 0.1 in Aqer."""
    if role == "patch":
        return λ, λ
    return (0.1 if role == "head" else 0.1 * λ), 0.1 * λ


class Erq:
    """Reparameterised activations; Aqer; a grid for the shifted weight; Wqer on that frozen grid."""

    name = "erq"
    reparameterize = True

    def solve(self, problem: Problem) -> Solution:
        spec, moments, k = problem.spec, problem.moments, problem.weight.shape[1]
        for_inputs, for_weights = ridges(problem.role, spec.ridge)
        ridge = Ridge(moments.G, for_inputs)
        W = problem.augmented  # (n, K)
        W = W + weight_shift(W, moments.D, ridge)
        if for_weights != for_inputs:
            ridge = Ridge(moments.G, for_weights)
        grid = weight_grid(W[:, :k], bits=problem.w_bits, rules=spec.rules)
        refine = REFINEMENTS[spec.rounding]
        W = quantize_columns(W, moments.G, moments.n_rows, grid, ridge, k=k, refine=refine, limit=spec.flips)
        return Solution(q=quantize(W[:, :k], grid), grid=grid, bias=W[:, k])


METHOD = Erq()
