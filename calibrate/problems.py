"""Every layer of a model as its solver meets it: the loop's own steps, without solving, to study one."""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from erq_export.contract.sites import Site, submodule
from erq_export.contract.spec import Quantization
from erq_export.models.loading import Loaded

from .known_ranges import KnownRanges
from .layer import layer_problem
from .loop import CHUNK
from .ranges import input_grids
from .setting import Setting
from .solve.problem import Problem
from .states import stage_moments


def layer_problems(loaded: Loaded, pixels: Tensor, asked: Quantization) -> Iterator[tuple[Site, Problem]]:
    """In the order of the network, with float inputs. Consumes `loaded.model`: LayerNorms are folded as it goes on."""
    setting, hidden, known = Setting.of(asked), list(pixels.split(CHUNK)), KnownRanges()
    for stage in loaded.stages:
        grids = input_grids(loaded.model, stage, hidden, setting, known)
        moments, hidden = stage_moments(loaded.model, stage, hidden, grids, setting.options)
        for site in stage.sites:
            linear = cast(nn.Linear, submodule(loaded.model, site.path, nn.Linear))
            yield site, layer_problem(linear, moments[site.path], site, setting)
