"""What calibration finds, as parts of a bundle for the target `reference` alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from erq_export.contract.errors import SpecError
from erq_export.contract.formats.affine import Grid
from erq_export.contract.simulated import Outliers, SimulatedLayer, SimulatedOperand
from erq_export.contract.sites import Site, Stage
from erq_export.contract.state import State

from ..operands import operand_grids
from ..setting import Setting
from ..solve.problem import Solution
from .attention import published_grids
from .dual import DualSolution


def simulated_layer(solution: Solution, site: Site, grids: Mapping[str, Grid], setting: Setting) -> SimulatedLayer:
    """int32 integers, for ranges need not hold 0; a float input where the site has no grid; outlier columns apart."""
    if site.kernel is not None:
        raise SpecError(
            f"{site.path} is a convolution, which the target reference alone does not have",
            fix="a target that is deployed, such as --to onnx",
        )
    usual, outliers = 0, None
    if isinstance(solution, DualSolution):
        inside = torch.isin(torch.arange(solution.q.shape[1], device=solution.q.device), solution.outliers)
        first, usual = int(solution.outliers[0]), int(inside.int().argmin())
        outliers = Outliers(
            columns=solution.outliers,
            scale=solution.grid.scale[:, first].contiguous(),
            qmin=solution.grid.qmin[:, first].to(torch.int32),
        )
    return SimulatedLayer(
        weight_q=solution.q.to(torch.int32),
        weight_scale=solution.grid.scale[:, usual].float().contiguous(),
        weight_qmin=solution.grid.qmin[:, usual].to(torch.int32),
        bias=solution.bias.float(),
        act=grids.get(site.path),
        w_bits=setting.weight_bits(site),
        a_bits=setting.act_bits(site),
        outliers=outliers,
    )


def simulated_operands(
    model: nn.Module, stage: Stage, hidden: Sequence[State], setting: Setting
) -> dict[str, SimulatedOperand]:
    """The operands of the stage, by path: as published at the activations' bits, or as deployed on ranges of any kind."""
    if setting.attention == "fp16":
        return {}
    roles, as_published = {site.path: site.role for site in stage.operands}, setting.attention == "paper"
    bits = setting.bits.a if as_published else setting.options.attention_bits
    grids = (published_grids if as_published else operand_grids)(model, stage, hidden, setting)
    return {path: SimulatedOperand(grid=grids[path], bits=bits, role=role) for path, role in roles.items()}
