"""Every weight to its nearest grid point: `rtn`, and on a reparameterised model `repq`."""

from ..methods.options import Options
from ..percentiles import WEIGHTS
from .problem import Problem, Solution
from .weight_grid import weight_grid


def solve(problem: Problem, options: Options) -> Solution:
    """Round to nearest; the bias untouched."""
    percentiles = WEIGHTS[options.weight_percentiles]
    grid = weight_grid(problem.weight, bits=problem.w_bits, rules=problem.rules, percentiles=percentiles)
    return Solution(q=grid.quantize(problem.weight), grid=grid, bias=problem.bias)
