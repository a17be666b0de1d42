"""The grids of attention's operands: q, k and v by percentiles of their values, the softmax by the output that it gives.

Letters:  P (B, h, T, T) softmax, V (B, h, T, d) what it multiplies;  s scale
Probabilities are many and small: a grid whose last point is 1 rounds a flat attention to nothing, and one that saturates
is cheap, for what is above its end is rare. So the range is the one of least Σ‖(P̂ − P) V‖² among halvings of the largest P.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from erq_export.contract.formats.affine import Grid, asymmetric_grid, snap_to_half, symmetric_grid
from erq_export.contract.sites import OperandSite, Stage
from erq_export.contract.state import State
from erq_export.contract.targets import GridRules

from .capture import walk_operands
from .observers import Tails, groups, pieces, range_search
from .percentiles import INPUTS
from .search import Search, of_product
from .setting import Setting

SOFTMAX_TOPS = tuple(2.0 ** (-j / 2) for j in range(14))  # of the largest probability: down to 1/90


def softmax_grid(top: Tensor, *, bits: int, rules: GridRules) -> Grid:
    """A grid over [0, top] for probabilities, scale of shape ().

    8 bits without a free zero point are symmetric, and what is above 127 s saturates in the container itself. Below 8 bits
    saturation takes a Clip; where the run's targets cannot have one behind a softmax, the grid reaches 1.
    """
    snap = snap_to_half if rules.half_scales else None
    zero = torch.zeros_like(top)
    if bits == 8 and not rules.offset_8bit:
        return symmetric_grid(zero, top, bits, snap=snap)
    if bits < 8 and not rules.softmax_clip:
        top = torch.ones_like(top)
    return asymmetric_grid(zero, top, bits, snap=snap)


def softmax_search(largest: Tensor, *, bits: int, rules: GridRules) -> Search[Grid]:
    """One candidate for every top below the `largest` probability of the calibration set, (); the widest wins ties."""
    grids = [softmax_grid(largest * share, bits=bits, rules=rules) for share in SOFTMAX_TOPS]
    return Search(candidates=grids, error=of_product)


def operand_grids(model: nn.Module, stage: Stage, hidden: Sequence[State], setting: Setting) -> dict[str, Grid]:
    """A grid for every operand of the stage, by path; none where the stage has no attention.

    Two passes over the float stage, like those of the layers' inputs: ranges, then the error of each candidate.
    """
    if not stage.operands:
        return {}
    sites = {site.path: site for site in stage.operands}
    tails, largest = _ranges(model, stage, hidden, sites, INPUTS[setting.options.input_percentiles])
    bits, rules = setting.options.attention_bits, setting.rules
    searches = {path: range_search(t, bits=bits, rules=rules, per_channel=False) for path, t in tails.items()}
    searches |= {path: softmax_search(top, bits=bits, rules=rules) for path, top in largest.items()}

    def measure(path: str, x: Tensor, beside: Tensor | None) -> None:
        if sites[path].role == "softmax":
            searches[path].add(x, beside)
            return
        for piece in pieces(x, per_channel=False):
            searches[path].add(piece)

    walk_operands(model, stage, hidden, measure)
    return {path: search.best() for path, search in searches.items()}


def _ranges(
    model: nn.Module,
    stage: Stage,
    hidden: Sequence[State],
    sites: dict[str, OperandSite],
    percentiles: Sequence[float],
) -> tuple[dict[str, Tails], dict[str, Tensor]]:
    """The tails of q, k and v; the largest probability of each softmax."""
    n_images = sum(len(h) for h in hidden)
    tails: dict[str, Tails] = {}
    largest: dict[str, Tensor] = {}

    def see(path: str, x: Tensor, _beside: Tensor | None) -> None:
        if sites[path].role == "softmax":
            largest[path] = torch.maximum(largest[path], x.amax()) if path in largest else x.amax()
            return
        values = groups(x, per_channel=False)
        if path not in tails:
            tails[path] = Tails.of(values.shape[1] // len(hidden[0]) * n_images, percentiles)
        tails[path].add(values)

    walk_operands(model, stage, hidden, see)
    return tails, largest
