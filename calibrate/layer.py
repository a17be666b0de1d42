"""One layer of the loop: from its moments to a problem, from a solution to what is stored, and how good it is."""

import torch
from torch import nn

from erq_export.contract.bundle import LayerStatistics
from erq_export.contract.formats.affine import Grid
from erq_export.contract.quantized import Outliers, QuantizedLayer
from erq_export.contract.sites import Site
from erq_export.contract.targets import GridRules

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


def assemble(solution: Solution, act: Grid | None, *, rules: GridRules, w_bits: int, a_bits: int) -> QuantizedLayer:
    """The solution as stored: int8 integers (int32 where ranges need not hold 0), float32 scales and bias."""
    codes, starts = (torch.int8, torch.int16) if rules.holds_zero else (torch.int32, torch.int32)
    usual, outliers = 0, None
    if solution.outliers is not None:
        inside = torch.isin(torch.arange(solution.q.shape[1], device=solution.q.device), solution.outliers)
        first, usual = int(solution.outliers[0]), int(inside.int().argmin())
        outliers = Outliers(
            columns=solution.outliers,
            scale=solution.grid.scale[:, first].contiguous(),
            qmin=solution.grid.qmin[:, first].to(starts),
        )
    return QuantizedLayer(
        weight_q=solution.q.to(codes),
        weight_scale=solution.grid.scale[:, usual].float().contiguous(),
        weight_qmin=solution.grid.qmin[:, usual].to(starts),
        bias=solution.bias.float(),
        act=act,
        w_bits=w_bits,
        a_bits=a_bits,
        outliers=outliers,
    )


def layer_statistics(problem: Problem, solution: Solution) -> LayerStatistics:
    """Output errors on the calibration rows, relative to the output's energy: with only the inputs quantized, with
    the weights then rounded to nearest, and as solved."""
    W, moments = problem.augmented, problem.moments
    nearest = torch.cat([solution.grid.fake_quantize(problem.weight), problem.bias[:, None]], 1)
    solved = torch.cat([solution.grid.dequantize(solution.q), solution.bias[:, None]], 1)
    energy, *errors = moments.output_errors(W, [torch.zeros_like(W), W, nearest, solved])
    of_inputs, of_nearest, as_solved = (error / max(energy, 1e-300) for error in errors)
    return LayerStatistics(n_rows=moments.n_rows, error_inputs=of_inputs, error_nearest=of_nearest, error=as_solved)
