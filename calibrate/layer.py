"""One layer of the loop: from its moments to a problem, and how good its solution is."""

import torch
from torch import nn

from erq_export.contract.rows import LayerStatistics
from erq_export.contract.sites import Site

from .moments import Moments
from .setting import Setting
from .solve.problem import Problem, Solution


def layer_problem(linear: nn.Linear, moments: Moments, site: Site, setting: Setting) -> Problem:
    """A Linear without a bias gets one of zeros: every deployed layer adds a bias, and Aqer makes use of it."""
    weight = linear.weight.double()
    bias = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias.double()
    return Problem(
        weight=weight, bias=bias, moments=moments, role=site.role, w_bits=setting.bits.w, rules=setting.rules
    )


def stated(error: float) -> float:
    """To nine digits: what follows depends on how many threads shared a sum, and a bundle's bytes should not."""
    return float(f"{error:.9g}")


def layer_statistics(problem: Problem, solution: Solution) -> LayerStatistics:
    """Output errors on the calibration rows, relative to the output's energy: with only the inputs quantized, with
    the weights then rounded to nearest, and as solved."""
    W, moments = problem.augmented, problem.moments
    nearest = torch.cat([solution.grid.fake_quantize(problem.weight), problem.bias[:, None]], 1)
    solved = torch.cat([solution.grid.dequantize(solution.q), solution.bias[:, None]], 1)
    energy, *errors = moments.output_errors(W, [torch.zeros_like(W), W, nearest, solved])
    of_inputs, of_nearest, as_solved = (stated(error / max(energy, 1e-300)) for error in errors)
    return LayerStatistics(n_rows=moments.n_rows, error_inputs=of_inputs, error_nearest=of_nearest, error=as_solved)
