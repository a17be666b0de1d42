"""How every layer's integers are spread: its weights', and its inputs' on a few images.

Letters:  x (…, k) a layer's input;  q (…, k) its codes;  w (n, k) integer weight
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from erq_export.contract.formats.affine import Grid
from erq_export.contract.histograms import MOST_BARS, Histogram, Histograms, InputHistogram, LayerHistograms
from erq_export.contract.quantized import QuantLinear
from erq_export.contract.simulated import SimulatedLinear


@torch.no_grad()
def histograms(reference: nn.Module, pixels: Tensor) -> Histograms:
    """Of every quantized layer, in the model's order, from one pass of the reference on its own device.

    pixels (B, 3, H, W). Nothing but counts is kept of a layer's input.
    """
    layers = {m.path: m for m in reference.modules() if isinstance(m, QuantLinear | SimulatedLinear)}
    inputs: dict[str, InputHistogram] = {}

    def hook(path: str, grid: Grid) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, args: inputs.update({path: of_input(args[0], grid)})

    grids = {path: grid_of(module) for path, module in layers.items()}
    handles = [
        layers[path].register_forward_pre_hook(hook(path, grid)) for path, grid in grids.items() if grid is not None
    ]
    try:
        reference(pixels.to(next(iter(reference.buffers())).device))
    finally:
        for handle in handles:
            handle.remove()
    return Histograms(
        n_images=len(pixels),
        layers={
            path: LayerHistograms(weights=of_codes(module.weight_q), inputs=inputs.get(path))
            for path, module in layers.items()
        },
    )


def grid_of(module: QuantLinear | SimulatedLinear) -> Grid | None:
    """The input's; None where it stays float."""
    if isinstance(module, QuantLinear):
        return module.grid
    grid: Any = None if module.act is None else module.act.grid
    return grid if isinstance(grid, Grid) else None


def of_input(x: Tensor, grid: Grid) -> InputHistogram:
    """Over all codes of the grid, used or not. Infinity counts as float32's largest number, NaN as 0: records hold neither."""
    x = x.float().nan_to_num()
    low, high = (float(end * grid.scale) for end in (grid.qmin - 0.5, grid.qmax + 0.5))
    ends = (int(grid.qmin.floor()), int(grid.qmax.ceil()))
    return InputHistogram(
        codes=of_codes(grid.quantize(x), ends),
        scale=float(grid.scale),
        low=float(x.min()),
        high=float(x.max()),
        beyond=int(((x < low) | (x > high)).sum()),
    )


def of_codes(q: Tensor, ends: tuple[int, int] | None = None) -> Histogram:
    """Counts over the codes between the ends, those of q itself where none are given, in at most `MOST_BARS` equal bars."""
    first, last = ends or (int(q.min()), int(q.max()))
    width = -(-(last - first + 1) // MOST_BARS)
    n_bars = -(-(last - first + 1) // width)
    places = torch.div(q.flatten() - first, width, rounding_mode="floor").long()
    return Histogram(
        first=first, width=width, counts=tuple(torch.bincount(places.clamp_(0, n_bars - 1), minlength=n_bars).tolist())
    )
