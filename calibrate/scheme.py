"""How what calibration finds becomes parts of a bundle: as they are deployed, or as a paper has them, simulated.

The only door of the published scheme into the loop: a run for `reference` alone takes `published.scheme`, any other this one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from erq_export.contract.bundle import Layer, Operand
from erq_export.contract.formats.affine import Grid
from erq_export.contract.quantized import QuantizedConv, QuantizedLayer, QuantizedOperand
from erq_export.contract.sites import Site, Stage
from erq_export.contract.state import State

from .operands import operand_grids
from .published.scheme import simulated_layer, simulated_operands
from .setting import Setting
from .solve.problem import Solution


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """layer: a solved layer and the stage's input grids → what is stored.  operands: those of a stage, on its hidden states."""

    layer: Callable[[Solution, Site, Mapping[str, Grid], Setting], Layer]
    operands: Callable[[nn.Module, Stage, Sequence[State], Setting], Mapping[str, Operand]]


def scheme_of(setting: Setting) -> Scheme:
    """Simulated where no target limits the grids."""
    if setting.simulated:
        return Scheme(layer=simulated_layer, operands=simulated_operands)
    return Scheme(layer=deployed_layer, operands=deployed_operands)


def deployed_layer(solution: Solution, site: Site, grids: Mapping[str, Grid], setting: Setting) -> QuantizedLayer:
    """int8 integers, float32 scales and bias."""
    layer = QuantizedLayer(
        weight_q=solution.q.to(torch.int8),
        weight_scale=solution.grid.scale[:, 0].float().contiguous(),
        weight_qmin=solution.grid.qmin[:, 0].to(torch.int16),
        bias=solution.bias.float(),
        act=grids[site.path],
        w_bits=setting.weight_bits(site),
        a_bits=setting.act_bits(site),
    )
    return layer if site.kernel is None else QuantizedConv(**vars(layer), kernel=site.kernel)


def deployed_operands(
    model: nn.Module, stage: Stage, hidden: Sequence[State], setting: Setting
) -> dict[str, QuantizedOperand]:
    """The operands of the stage, by path; none where attention stays float."""
    if setting.attention == "fp16":
        return {}
    roles, bits = {site.path: site.role for site in stage.operands}, setting.options.attention_bits
    grids = operand_grids(model, stage, hidden, setting)
    return {path: QuantizedOperand(grid=grids[path], bits=bits, role=role) for path, role in roles.items()}
