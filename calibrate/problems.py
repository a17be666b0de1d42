"""Every layer of a model as its solver meets it: the loop's own steps, without solving, to study one."""

from collections.abc import Iterator

from torch import Tensor

from erq_export.contract.sites import Site
from erq_export.contract.spec import Quantization
from erq_export.models.loading import Loaded

from .bases import better_bases
from .known_ranges import KnownRanges
from .layer import layer_problem
from .loop import CHUNK
from .ranges import input_grids
from .rotation import rotate
from .setting import Setting
from .solve.problem import Problem
from .states import stage_moments


def layer_problems(loaded: Loaded, pixels: Tensor, asked: Quantization) -> Iterator[tuple[Site, Problem]]:
    """In the order of the network, with float inputs. Consumes `loaded.model`: it is rotated, and LayerNorms are folded as it
    goes on."""
    setting, hidden, known = Setting.of(asked), list(pixels.split(CHUNK)), KnownRanges()
    rotate(loaded, better_bases(loaded, hidden[0], setting))
    for stage in loaded.stages:
        grids = input_grids(loaded.model, stage, hidden, setting, known)
        moments, hidden = stage_moments(loaded.model, stage, hidden, grids, setting.options)
        for site in stage.sites:
            yield site, layer_problem(loaded.model, moments[site.path], site, setting)
