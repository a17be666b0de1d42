"""ERQ (ICML 2024): absorb the activations' error in the weights, then quantize the weights half by half.

Letters:  W (n, K) weight with the bias as last column;  λ the paper's ridge;  G, D, N the layer's moments
"""

from functools import partial

from erq_export.contract.sites import Role

from ..methods.erq import ErqOptions
from ..percentiles import WEIGHTS
from ..published.dual import DUAL_ROLES, DualSolution, dual_grid
from ..published.mipq import mipq
from ..published.unit_rule import unit
from .best_ridge import best_ridge, solved_from
from .problem import Problem, Solution
from .rounding import REFINEMENTS, Refinement
from .row_steps import refine_rows
from .weight_grid import weight_grid
from .wide_ridge import ridge_of, shift_of
from .wqer import quantize_columns


def ridges(role: Role, λ: float, options: ErqOptions) -> tuple[float, float]:
    """(Aqer, Wqer): what is added to the diagonal of the summed Gram matrix (docs/method.md, "Ridge", behaviour of the
    authors' code): 0.1 λ; the patch embedding `patch_factor` times that; the head, whose N rows are fewer than its columns,
    0.1 λ_head in Aqer.

    The published λ_head is 1. It lets the head learn its 32 rows by heart; with λ_head = λ, the default, the logits of
    images it has not seen are closer to the float model's (docs/beyond-the-paper.md).
    """
    if role == "patch":
        return (0.1 * λ * options.patch_factor,) * 2
    return 0.1 * (options.head_ridge if role == "head" and options.head_ridge is not None else λ), 0.1 * λ


def refinement(options: ErqOptions) -> Refinement:
    """The rounding rule that the options name; `mipq` with its block and its time limit."""
    if options.rounding == "mipq":
        return partial(mipq, columns=options.mipq_columns, seconds=options.mipq_seconds)
    if options.rounding == "unit":
        return unit
    return REFINEMENTS[options.rounding]


def solve(problem: Problem, options: ErqOptions) -> Solution:
    """With the ridge that the options name, or the one that does best on images that it was not fitted to."""
    if options.ridge == "auto":
        at = partial(solve_at, options=options)
        return solved_from(best_ridge(problem, at), problem, at)
    return solve_at(options.ridge, problem, options=options)


def solve_at(λ: float, problem: Problem, *, options: ErqOptions) -> Solution:
    """Aqer; a grid for the shifted weight; Wqer on that frozen grid; steps over whole rows."""
    moments, k, rules = problem.moments, problem.weight.shape[1], problem.rules
    for_inputs, for_weights = ridges(problem.role, λ, options)
    G = moments.G
    ridge = ridge_of(moments, G, for_inputs)
    W = problem.augmented  # (n, K)
    W = wanted = W + shift_of(W, moments, ridge)
    if for_weights != for_inputs:
        ridge = ridge_of(moments, G, for_weights)
    percentiles = WEIGHTS[options.weight_percentiles]
    grid, outliers = weight_grid(W[:, :k], bits=problem.w_bits, rules=rules, percentiles=percentiles), None
    if options.dual and problem.role in DUAL_ROLES:
        grid, outliers = dual_grid(W[:, :k], bits=problem.w_bits, rules=rules, percentiles=percentiles)
    refine = refinement(options)
    W = quantize_columns(W, G, moments.n_rows, grid, ridge, k=k, refine=refine, limit=options.flips)
    q, bias = grid.quantize(W[:, :k]), W[:, k]
    if options.row_steps and outliers is None:  # steps count in one scale a row
        q, bias = refine_rows(q, grid, wanted, G, for_weights, options.row_steps)
    if outliers is not None:
        return DualSolution(q=q, grid=grid, bias=bias, ridge=λ, outliers=outliers)
    return Solution(q=q, grid=grid, bias=bias, ridge=λ)
