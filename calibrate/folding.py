"""Where a site's per-channel input grid goes: into the LayerNorm in front of it, or into the values that attention averages.

Letters:  x (k,) a site's input;  γ', β' (k,) the map x → γ' x + β' behind which every channel has the same grid (`reparam`)
Values:   proj's input is Σₜ pₜ vₜ with weights pₜ ≥ 0 that sum to 1, hence Σₜ pₜ (γ' vₜ + β') = γ' x + β': the map is folded
          into the rows of qkv that make v. Exact for a float softmax; the codes of a quantized one do not sum to 1.
Padding:  zeros put in behind the LayerNorm are tokens, too, and must become β' − β / r₁ = v: the LayerNorm gets γ' and β / r₁,
          and v is added behind the padding. Such a token then has the integer of 0 in each channel, z.
"""

from typing import cast

import torch
from torch import nn

from erq_export.contract.formats.affine import Grid
from erq_export.contract.sites import Site, submodule

from .linears import bias_of, linear_of, put
from .reparam import Folded, fold
from .setting import Setting


def reparameterized(model: nn.Module, site: Site, per_channel: Grid, setting: Setting) -> Grid:
    """Fold a site's per-channel grid (k, 1) into what makes its input and into its Linear; returns the per-tensor grid."""
    linear = linear_of(model, site.path)
    like = linear.weight[0]
    norm = None if site.norm is None else cast(nn.LayerNorm, submodule(model, site.norm, nn.LayerNorm))
    gamma = torch.ones_like(like) if norm is None or norm.weight is None else norm.weight
    beta = torch.zeros_like(like) if norm is None or norm.bias is None else norm.bias
    folded = fold(
        gamma,
        beta,
        linear.weight,
        linear.bias,
        per_channel.map(lambda t: t[:, 0]),
        bits=setting.act_bits(site),
        rules=setting.rules,
        mean_zero=setting.options.mean_zero,
    )
    if norm is not None:
        norm.elementwise_affine = True
        put(norm, folded.gamma, folded.beta if site.pad is None else folded.beta_scaled)
        if site.pad is not None:
            model.get_submodule(site.pad).register_buffer("shift", folded.shift)
    else:
        _map_values(linear_of(model, str(site.values)), folded)
    put(linear, folded.weight, folded.bias)
    return folded.grid


def _map_values(qkv: nn.Linear, folded: Folded) -> None:
    """v → γ' v + β', in the last k rows of qkv. In float64."""
    k = len(folded.gamma)
    weight = qkv.weight.double()
    bias = bias_of(qkv)
    weight[-k:] *= folded.gamma.double()[:, None]
    bias[-k:] = folded.gamma.double() * bias[-k:] + folded.beta.double()
    put(qkv, weight, bias)
