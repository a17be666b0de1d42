"""A basis in which no channel stands out: residual streams and the values of attention are rotated, by their weights alone.

Letters:  D channels;  Q (D, D) orthogonal with Q 1 = 1;  x (D,) a token of the stream;  γ, β (D,) a LayerNorm;  d channels a head
Stream:   A LayerNorm subtracts the mean and divides by the deviation. Q 1 = 1 keeps the first, orthogonality the second:
          with x̄ for LN(x) without γ and β, LN(Q x) = Q x̄. Hence
            what is added   W' = Q diag(ℓ) W,   b' = Q (ℓ b)      ℓ the LayerScale behind it, then 1;  parameters: t' = Q t
            what reads      W' = W diag(γ) Qᵀ,  b' = b + W β      γ, β then 1 and 0;  Qᵀ once for each token of a merging
Values:   attention averages values, R Σ pₜ vₜ = Σ pₜ R vₜ: the rows of v are multiplied by R (d, d), the columns of proj by Rᵀ.
Why:      a few channels of a trained transformer are many times as large as the others. Grids folded into a LayerNorm move that
          spread into the weights, whose grids it spoils. In the new basis every channel is a mixture of all, and of one size.
Source:   QuaRot (arXiv 2404.00456) for RMSNorm; Q 1 = 1 makes it exact behind a LayerNorm that subtracts means (derived).
"""

import copy
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from erq_export.contract.sites import Stream
from erq_export.models.family import add_back
from erq_export.models.loading import Loaded

from .linears import bias_of, linear_of, put


def rotation(n: int, *, seed: int = 0) -> Tensor:
    """Q = Cᵀ S C (n, n) float64: orthogonal, with Q 1 = 1 and entries of one size.

    C is the orthonormal cosine transform (DCT-II), whose first row is constant; S holds random signs, the first of them +.
    """
    j = torch.arange(n, dtype=torch.float64)
    C = torch.cos(math.pi / n * j[:, None] * (j + 0.5)) * math.sqrt(2 / n)  # (n, n)
    C[0] = math.sqrt(1 / n)
    signs = torch.from_numpy(np.random.default_rng([n, seed]).choice([-1.0, 1.0], n))
    signs[0] = 1
    return C.T @ (signs[:, None] * C)


@dataclass(frozen=True, kw_only=True)
class Values:
    """The values of one attention: made by the last third of `qkv`'s rows, read by `proj`, R (n, n) head by head."""

    qkv: str
    proj: str
    R: Tensor


def streams_of(loaded: Loaded) -> dict[str, Stream]:
    """By the name that a bundle gives them: the first Linear that is added to one."""
    return {next(iter(stream.added)): stream for stream in loaded.family.streams(loaded.model)}


def values_of(loaded: Loaded) -> dict[str, Values]:
    """By the Linear that reads them."""
    head_dims = {shape.path: shape.head_dim for shape in loaded.family.attention(loaded.model)}
    found: dict[str, Values] = {}
    for site in (site for stage in loaded.stages for site in stage.sites if site.values is not None):
        n, d = linear_of(loaded.model, site.path).in_features, head_dims[site.path.rpartition(".")[0]]
        R = torch.block_diag(*(rotation(d, seed=len(found) * n + h) for h in range(n // d)))
        found[site.path] = Values(qkv=str(site.values), proj=site.path, R=R)
    return found


def rotated(loaded: Loaded, names: Collection[str]) -> nn.Module:
    """A copy of the float model in the basis that a bundle of it has: what every layer of the bundle is compared with."""
    fresh = replace(loaded, model=copy.deepcopy(loaded.model))
    rotate(fresh, names)
    return fresh.model


@torch.no_grad()
def rotate(loaded: Loaded, names: Collection[str]) -> None:
    """Rotate the named streams and values in place; the function stays. Computed in float64, stored in float32."""
    streams, values = streams_of(loaded), values_of(loaded)
    for name in names:
        if name in streams:
            _rotate_stream(loaded.model, streams[name])
        else:
            _rotate_values(loaded.model, values[name])


def _rotate_stream(model: nn.Module, stream: Stream) -> None:
    Q = rotation(stream.width).to(next(model.parameters()).device)
    for path, scale in stream.added.items():
        linear = linear_of(model, path)
        gamma = None if scale is None else cast(Any, model.get_submodule(scale)).gamma
        before = torch.ones_like(Q[0]) if gamma is None else gamma.double()
        put(linear, Q @ (before[:, None] * linear.weight.double()), Q @ (before * bias_of(linear)))
        if gamma is not None:
            gamma.fill_(1)
    for name in stream.tokens:
        parameter = model.get_parameter(name)
        parameter.copy_((parameter.double() @ Q.T).float())
    for path, linears in stream.read.items():
        norm = cast(nn.LayerNorm, model.get_submodule(path))
        for linear in (linear_of(model, name) for name in linears):
            W = linear.weight.double()
            put(linear, side_by_side(W * norm.weight.double(), Q), bias_of(linear) + W @ norm.bias.double())
        _make_plain(norm)
    if stream.out is not None:
        norm = cast(nn.LayerNorm, model.get_submodule(stream.out))
        put(add_back(model, stream.out, stream.width), norm.weight.double()[:, None] * Q.T, norm.bias.double())
        _make_plain(norm)


def _rotate_values(model: nn.Module, values: Values) -> None:
    qkv, proj = linear_of(model, values.qkv), linear_of(model, values.proj)
    R, n = values.R.to(qkv.weight.device), len(values.R)
    weight, bias = qkv.weight.double(), bias_of(qkv)
    weight[-n:], bias[-n:] = R @ weight[-n:], R @ bias[-n:]
    put(qkv, weight, bias)
    put(proj, proj.weight.double() @ R.T, bias_of(proj))


def side_by_side(x: Tensor, Q: Tensor) -> Tensor:
    """Q x of every token in a row (…, m D) of m tokens side by side."""
    tokens: Tensor = x.unflatten(-1, (-1, len(Q)))
    return (tokens @ Q.T).flatten(-2)


def _make_plain(norm: nn.LayerNorm) -> None:
    norm.weight.fill_(1)
    norm.bias.zero_()
