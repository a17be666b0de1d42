"""Round to nearest: percentile ranges, nothing else. The control that other methods are measured against."""

from erq_export.contract.formats.affine import quantize

from ..solve.weight_grid import PERCENTILES, weight_grid
from .method import Problem, Solution


class RoundToNearest:
    """Every weight to its nearest grid point; the bias untouched; activations per tensor."""

    name = "rtn"
    reparameterize = False

    def solve(self, problem: Problem) -> Solution:
        spec, percentiles = problem.spec, PERCENTILES[problem.spec.weight_percentiles]
        grid = weight_grid(problem.weight, bits=problem.w_bits, rules=spec.rules, percentiles=percentiles)
        return Solution(q=quantize(problem.weight, grid), grid=grid, bias=problem.bias)


METHOD = RoundToNearest()
