"""Layers by their module path: read, and given other weights.

Letters:  W (n, k) weight, b (n,) bias of a Linear;  γ, β (k,) those of a LayerNorm
"""

from typing import cast

import torch
from torch import Tensor, nn

from erq_export.contract.sites import submodule


def linear_of(model: nn.Module, path: str) -> nn.Linear:
    """The Linear at that path. TypeError where another module stands there."""
    return cast(nn.Linear, submodule(model, path, nn.Linear))


def bias_of(linear: nn.Linear) -> Tensor:
    """(n,) float64; zeros where there is none."""
    return torch.zeros_like(linear.weight[:, 0].double()) if linear.bias is None else linear.bias.double()


def put(module: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Give a Linear (W, b) or a LayerNorm (γ, β) these, as float32 parameters that are not trained."""
    for name, value in (("weight", weight), ("bias", bias)):
        module.register_parameter(name, nn.Parameter(value.float().contiguous(), requires_grad=False))
