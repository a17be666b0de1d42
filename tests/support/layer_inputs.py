"""What a layer inside a model is given, and the grid of each of its channels."""

import torch
from torch import Tensor, nn

from erq_export.contract.formats.affine import Grid, asymmetric_grid


def inputs_of(model: nn.Module, path: str, pixels: Tensor) -> Tensor:
    """(rows, k)"""
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        model(pixels)
    handle.remove()
    return seen[0]


def grid_of(x: Tensor, bits: int) -> Grid:
    """One a channel: (k, 1)."""
    lo, hi = x.aminmax(dim=0)
    return asymmetric_grid(lo[:, None], hi[:, None], bits)
