"""The input grids of one stage's sites: ranges searched over the calibration set, and folded on the way.

With `-O input_ranges=float` a site's range is that of the full-precision model's inputs. With `quantized` it is the
paper's (docs/method.md, "Order of the steps"): inputs behind the quantizers of all activations before it, weights in
full precision.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from erq_export.contract.errors import DataError
from erq_export.contract.formats.affine import Grid
from erq_export.contract.sites import Site, Stage
from erq_export.contract.state import State, n_images

from .capture import Visitor, values, walk
from .folding import reparameterized
from .known_ranges import KnownRanges
from .linears import layer_of, matrix_of
from .observers import Tails, groups, pieces, range_search
from .percentiles import INPUTS
from .search import Error, of_outputs, of_rows, of_tensor
from .setting import Setting


def input_grids(
    model: nn.Module, stage: Stage, hidden: Sequence[State], setting: Setting, known: KnownRanges
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
    hidden: Sequence[State],
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
    hidden: Sequence[State],
    setting: Setting,
    *,
    before: Mapping[str, Grid],
) -> dict[str, Grid]:
    """The grids of `sites`, (k, 1) a channel where they will be folded, with the inputs of the sites in `before` quantized.

    Two passes over the stage: the tails that give exact percentiles, then the squared error of each percentile's grid. A
    varied stage takes one more, which counts. DataError where a site is given nothing.
    """
    wanted = {s.path: s for s in sites if not setting.float_input(s)}
    fold_sites = {s.path: s for s in sites if setting.folds(s)}
    tails: dict[str, Tails] = {}
    see = partial(walk, model, stage, hidden, on_grid=before, rows=values)  # every pass alike
    n_rows = counted(see) if stage.varied else {}
    times = sum(map(n_images, hidden)) / n_images(hidden[0])

    def see_tails(path: str, x: Tensor) -> None:
        if path not in wanted:
            return
        grouped = groups(x, per_channel=path in fold_sites)
        if path not in tails:
            n = grouped.shape[1] // len(x) * n_rows.get(path, round(len(x) * times))
            tails[path] = Tails.of(n, INPUTS[setting.options.input_percentiles])
        tails[path].add(grouped)

    see(see_tails)
    refuse_unused(wanted, tails)
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


def refuse_unused(wanted: Collection[str], tails: Collection[str]) -> None:
    """DataError for a layer that no calibration image reaches, as a mask head's where nothing is detected."""
    unused = [path for path in wanted if path not in tails]
    if unused:
        raise DataError(
            f"no calibration image gives {unused[0]} anything to work on",
            fix="calibrate on other images, such as ones that show objects that the model knows, or on more",
        )


def counted(see: Callable[[Visitor], object]) -> dict[str, int]:
    """How many rows each site is given, over all calls."""
    n_rows: Counter[str] = Counter()
    see(lambda path, x: n_rows.update({path: len(x)}))
    return n_rows


def error_of(model: nn.Module, site: Site, setting: Setting) -> Error:
    """What a range is judged by: of a folded site, each channel's own error; else the output's, or the tensor's."""
    if setting.folds(site):
        return of_rows
    if setting.options.range_error == "input":
        return of_tensor
    squares = matrix_of(layer_of(model, site)).double().square().sum(0)  # (k,)
    if site.kernel is not None:
        squares = squares.reshape(site.kernel.channels, -1).sum(1)  # (c,): a value lies in every place of the window
    return of_outputs(squares)
