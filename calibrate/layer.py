"""One layer of the loop: from its moments to a problem, and how good its solution is."""

import torch
from torch import nn

from erq_export.contract.rows import LayerStatistics
from erq_export.contract.sites import Site

from .halves import HalvedMoments
from .linears import bias_of, layer_of, matrix_of
from .setting import Setting
from .solve.crossed import crossed_error, of_few_rows
from .solve.problem import Problem, Solution
from .wide import WideHalves


def layer_problem(model: nn.Module, moments: HalvedMoments | WideHalves, site: Site, setting: Setting) -> Problem:
    """A layer without a bias gets one of zeros: every deployed layer adds a bias, and Aqer makes use of it."""
    layer = layer_of(model, site)
    return Problem(
        weight=matrix_of(layer).double(),
        bias=bias_of(layer),
        moments=moments.whole,
        halves=moments.halves,
        role=site.role,
        w_bits=setting.weight_bits(site),
        rules=setting.rules,
    )


def stated(error: float) -> float:
    """To nine digits: what follows depends on how many threads shared a sum, and a bundle's bytes should not."""
    return float(f"{error:.9g}")


def layer_statistics(problem: Problem, solution: Solution, setting: Setting) -> LayerStatistics:
    """Output errors on the calibration rows, relative to the output's energy: with only the inputs quantized, with
    the weights then rounded to nearest, and as solved; and what the same solve makes of images that it has not seen."""
    W, moments = problem.augmented, problem.moments
    nearest = torch.cat([solution.grid.fake_quantize(problem.weight), problem.bias[:, None]], 1)
    zero = torch.zeros_like(W)
    energy, *errors = moments.output_errors(W, [zero, W, nearest, solution.augmented])
    of_inputs, of_nearest, as_solved = (stated(error / max(energy, 1e-300)) for error in errors)
    return LayerStatistics(
        n_rows=moments.n_rows,
        error_inputs=of_inputs,
        error_nearest=of_nearest,
        error=as_solved,
        error_unseen=unseen_error(problem, solution, setting),
        ridge=solution.ridge,
    )


def unseen_error(problem: Problem, solution: Solution, setting: Setting) -> float | None:
    """Relative output error of a few outputs, each half of the images solved for and judged on the other; None for one image."""
    if problem.halves is None:
        return None
    error, energy = crossed_error(of_few_rows(problem), setting.at(solution).solve)
    return stated(error / max(energy, 1e-300))
