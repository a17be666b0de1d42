"""Layers by their module path: read, and given other weights.

Letters:  W (n, k) weight, b (n,) bias of a Linear, or of a convolution as a matrix;  γ, β (k,) those of a LayerNorm
"""

from typing import cast

from torch import Tensor, nn

from erq_export.contract.kernel import Kernel
from erq_export.contract.sites import Site, submodule


def linear_of(model: nn.Module, path: str) -> nn.Linear:
    """The Linear at that path. TypeError where another module stands there."""
    return cast(nn.Linear, submodule(model, path, nn.Linear))


def layer_of(model: nn.Module, site: Site) -> nn.Linear | nn.Conv2d:
    """What stands at a site. TypeError where it is neither, or a convolution with another kernel than the site's."""
    if site.kernel is None:
        return linear_of(model, site.path)
    conv = cast(nn.Conv2d, submodule(model, site.path, nn.Conv2d))
    if Kernel.of(conv) != site.kernel:
        raise TypeError(f"{site.path} is {conv}, not {site.kernel}")
    return conv


def matrix_of(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """W (n, k)."""
    return layer.weight.flatten(1)


def bias_of(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """(n,) float64; zeros where there is none."""
    return layer.weight.new_zeros(len(layer.weight)).double() if layer.bias is None else layer.bias.double()


def put(module: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Give a Linear (W, b) or a LayerNorm (γ, β) these, as float32 parameters that are not trained."""
    for name, value in (("weight", weight), ("bias", bias)):
        module.register_parameter(name, nn.Parameter(value.float().contiguous(), requires_grad=False))
