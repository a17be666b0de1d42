"""LayerNorm reparameterisation (RepQ-ViT, taken over by ERQ): per-channel activation grids folded into one per-tensor grid.

Letters:  s (k,) per-channel scales, z (k,) zero points;  s̃, z̃ their common values;  r₁ = s/s̃,  r₂ = z − z̃
          γ, β (k,) LayerNorm;  W (n, k), b (n,) the Linear it feeds
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.formats.affine import Grid, snap_to_half
from erq_export.contract.targets import GridRules


@dataclass(frozen=True, kw_only=True)
class Folded:
    """The reparameterised pair and the per-tensor grid that now fits the LayerNorm's output."""

    gamma: Tensor
    beta: Tensor
    weight: Tensor
    bias: Tensor
    grid: Grid
    beta_scaled: Tensor  # β' in two: what scales β,
    shift: Tensor  # and what is added to every token, also to zeros that are put in behind the LayerNorm


def fold(
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    per_channel: Grid,
    *,
    bits: int,
    rules: GridRules,
    mean_zero: bool = False,
) -> Folded:
    """Give every channel of the LayerNorm's output the same grid, without changing the function of the pair.

        LN:      γ' = γ / r₁        β' = (β + s r₂) / r₁
        Linear:  W' = W · r₁        b' = b − W (s r₂)

        in two: β' = β / r₁ + v        v = s r₂ / r₁ = s̃ r₂

    The output becomes x' = (x + s r₂)/r₁, hence x'/s̃ = x/s + z − z̃: quantizing x' with (s̃, z̃) gives the same integers as
    quantizing x per channel with (s, z), exactly, because z̃ is an integer. z̃ is free: the rounded mean of z, moved
    into [0, 2^b − 1] so that the codes fit every container; 2^(b−1) where 8 bits must be centred on 0.
    `mean_zero` keeps the mean as the published code does: no integer, so codes saturate between integers and the
    per-channel quantizer is matched in their middle alone.
    Shapes in and out are those of the letters; computed in float64. Source: RepQ-ViT; docs/method.md, "LayerNorm fold".
    """
    s, z = per_channel.scale.double(), -per_channel.qmin.double()
    common_s = s.mean().float()
    if rules.half_scales:
        common_s = snap_to_half(common_s)
    common_z = z.mean() if mean_zero else torch.round(z.mean())
    if rules.holds_zero:
        common_z = common_z.clamp(0, 2**bits - 1)
    if bits == 8 and not rules.offset_8bit:
        common_z = torch.full_like(common_z, 2.0 ** (bits - 1))
    b = torch.zeros(len(weight), dtype=torch.float64, device=weight.device) if bias is None else bias.double()
    common_z = common_z.float().double()  # as it is stored
    r1, r2 = s / common_s.double(), z - common_z
    qmin = -common_z.float()
    return Folded(
        gamma=(gamma.double() / r1).float(),
        beta=((beta.double() + s * r2) / r1).float(),
        weight=(weight.double() * r1).float(),
        bias=(b - weight.double() @ (s * r2)).float(),
        grid=Grid(scale=common_s, qmin=qmin, qmax=qmin + 2**bits - 1),
        beta_scaled=(beta.double() / r1).float(),
        shift=(s * r2 / r1).float(),
    )
