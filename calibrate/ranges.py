"""The input grids of one stage's sites: ranges searched over the calibration set, and folded on the way.

With `-O input_ranges=float` a site's range is that of the full-precision model's inputs. With `quantized` it is the
paper's (docs/method.md, "Order of the steps"): inputs behind the quantizers of all activations before it, weights in
full precision.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from erq_export.contract.formats.affine import Grid
from erq_export.contract.sites import Site, Stage

from .capture import walk
from .folding import reparameterized
from .known_ranges import KnownRanges
from .linears import linear_of
from .observers import Tails, groups, pieces, range_search
from .percentiles import INPUTS
from .search import Error, of_outputs, of_rows, of_tensor
from .setting import Setting


def input_grids(
    model: nn.Module, stage: Stage, hidden: Sequence[Tensor], setting: Setting, known: KnownRanges
) -> dict[str, Grid]:
    """The per-tensor grid of every quantized input; sites that fold are reparameterised in place on the way.

    `hidden` is the state that the ranges are searched on (`States.ranged`). Behind quantizers the sites are searched
    one after the other, two passes each: a site's inputs exist only once those before it have their grids.
    What is `known` is not searched again; what is found becomes known.
    """
    if setting.options.input_ranges == "float":
        return folded(
            model, stage.sites, search_or_know(model, stage, stage.sites, hidden, setting, {}, known), setting
        )
    grids: dict[str, Grid] = {}
    for site in stage.sites:
        found = search_or_know(model, stage, (site,), hidden, setting, grids, known)
        grids |= folded(model, (site,), found, setting)
    return grids


def search_or_know(
    model: nn.Module,
    stage: Stage,
    sites: Sequence[Site],
    hidden: Sequence[Tensor],
    setting: Setting,
    before: Mapping[str, Grid],
    known: KnownRanges,
) -> dict[str, Grid]:
    """The grids of `sites` before folding, from `known` where it has all of them."""
    paths = [site.path for site in sites if not setting.float_input(site)]
    if not all(path in known.grids for path in paths):
        known.grids |= searched(model, stage, sites, hidden, setting, before=before)
    return {path: known.grids[path] for path in paths}


def folded(model: nn.Module, sites: Sequence[Site], grids: Mapping[str, Grid], setting: Setting) -> dict[str, Grid]:
    """The per-tensor grids, reparameterised in place where sites fold theirs."""
    by_path = {site.path: site for site in sites}
    return {
        path: reparameterized(model, by_path[path], grid, setting) if setting.folds(by_path[path]) else grid
        for path, grid in grids.items()
    }


def searched(
    model: nn.Module,
    stage: Stage,
    sites: Sequence[Site],
    hidden: Sequence[Tensor],
    setting: Setting,
    *,
    before: Mapping[str, Grid],
) -> dict[str, Grid]:
    """The grids of `sites`, (k, 1) a channel where they will be folded, with the inputs of the sites in `before` quantized.

    Two passes over the stage: the tails that give exact percentiles, then the squared error of each percentile's grid.
    """
    n_images = sum(len(h) for h in hidden)
    wanted = {s.path: s for s in sites if not setting.float_input(s)}
    fold_sites = {s.path: s for s in sites if setting.folds(s)}
    tails: dict[str, Tails] = {}

    def see_tails(path: str, x: Tensor) -> None:
        if path not in wanted:
            return
        values = groups(x, per_channel=path in fold_sites)
        if path not in tails:
            tails[path] = Tails.of(
                values.shape[1] // len(hidden[0]) * n_images, INPUTS[setting.options.input_percentiles]
            )
        tails[path].add(values)

    see = partial(walk, model, stage, hidden, on_grid=before)  # both passes alike
    see(see_tails)
    bits = {path: setting.act_bits(site) for path, site in wanted.items()}
    searches = {
        path: range_search(
            t,
            bits=bits[path],
            rules=setting.rules,
            error=error_of(model, wanted[path], setting),
            per_channel=path in fold_sites,
        )
        for path, t in tails.items()
    }

    def see_errors(path: str, x: Tensor) -> None:
        if path in searches:
            for piece in pieces(x, per_channel=path in fold_sites):
                searches[path].add(piece)

    see(see_errors)
    return {path: search.best() for path, search in searches.items()}


def error_of(model: nn.Module, site: Site, setting: Setting) -> Error:
    """What a range is judged by: of a folded site, each channel's own error; else the output's, or the tensor's."""
    if setting.folds(site):
        return of_rows
    if setting.options.range_error == "input":
        return of_tensor
    weight = linear_of(model, site.path).weight
    return of_outputs(weight.double().square().sum(0))
