"""What the folds of a calibration do to the inputs of its layers, found again from its input grids.

Letters:  x (k,) a site's input in the float model;  x′ = γ x + β the same behind the fold, where every channel has one grid
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from erq_export.contract.sites import Site
from erq_export.contract.spec import Quantization
from erq_export.contract.unfolded import Map
from erq_export.data.calibration_set import CalibrationSet
from erq_export.models.loading import Loaded

from .capture import unseen, walk
from .known_ranges import KnownRanges
from .loop import CHUNK
from .ranges import input_grids
from .reparam import fold
from .rotation import rotated
from .scheme import scheme_of
from .setting import Setting
from .states import States


@torch.no_grad()
def input_maps(
    loaded: Loaded,
    data: CalibrationSet,
    asked: Quantization,
    bases: Sequence[str],
    *,
    device: torch.device,
    known: KnownRanges,
) -> dict[str, Map]:
    """The map of every site whose grid was folded, by path; `bases` are those of the bundle, `loaded` stays as it is.

    Grids in `known` are not searched again. Where one is missing all are, on the images that were calibrated on, as the
    calibration did.
    """
    setting = Setting.of(asked)
    sites = [site for stage in loaded.stages for site in stage.sites if not setting.float_input(site)]
    known.begin(tuple(bases))
    if not all(site.path in known.grids for site in sites):
        fresh = replace(loaded, model=rotated(loaded, bases).to(device))
        _search(fresh, [chunk.to(device) for chunk in data.pixels.split(CHUNK)], setting, known)
    return {site.path: _map(site, known, setting) for site in sites if setting.folds(site)}


def _map(site: Site, known: KnownRanges, setting: Setting) -> Map:
    per_channel = known.grids[site.path].map(lambda t: t[:, 0])
    one = torch.ones_like(per_channel.scale, dtype=torch.float32)  # (k,)
    found = fold(
        one,
        torch.zeros_like(one),
        one[None],
        None,
        per_channel,
        bits=setting.act_bits(site),
        rules=setting.rules,
        mean_zero=setting.options.mean_zero,
    )
    return Map(scale=found.gamma, shift=found.beta)


def _search(loaded: Loaded, chunks: Sequence[Tensor], setting: Setting, known: KnownRanges) -> None:
    """The loop without its moments and solver: the model is folded on the way, and stays float."""
    model: nn.Module = loaded.model
    states = replace(States.of(chunks, setting.options), deployed=None)
    for stage in loaded.stages:
        hidden = states.for_ranges
        grids = input_grids(model, stage, hidden, setting, known)
        operands = {} if states.ranged is None else scheme_of(setting).operands(model, stage, hidden, setting)
        exact = walk(model, stage, states.exact, unseen)
        states = states.past(model, stage, exact, grids=grids, layers={}, operands=operands)
