"""Where a model is quantized: layers and attention operands by module path, and the stages that data walks through."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from erq_export.contract.kernel import Kernel

Role = Literal["patch", "qkv", "proj", "fc1", "fc2", "reduction", "head", "conv", "fc"]


OperandRole = Literal["q", "k", "v", "softmax"]


OPERANDS: tuple[OperandRole, ...] = ("q", "k", "v", "softmax")


@dataclass(frozen=True, kw_only=True)
class Site:
    """One quantized layer by its module path, and what makes its input, where a grid can be folded into that.

    kernel: of an nn.Conv2d; without one it is an nn.Linear.  norm: the LayerNorm that is its only source.  pad: the module
    between the two that fills up with zeros, whose buffer `shift` is then added everywhere.  values: the Linear of q, k and v;
    the input is v, the last third of its outputs, channel by channel averaged over tokens with weights that sum to 1.
    """

    path: str
    role: Role
    kernel: Kernel | None = None
    norm: str | None = None
    pad: str | None = None
    values: str | None = None


@dataclass(frozen=True, kw_only=True)
class OperandSite:
    """One operand of attention's two products: an `Operand` by its module path."""

    path: str
    role: OperandRole


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of the model that is run on its own: hidden state in, hidden state out (`contract.state`).

    varied: a site in it is called several times for an image, or on another number of rows for each.
    leading: tokens at the start of each image's rows that the output is read from, one for all others (the class token).
    """

    name: str
    forward: Callable[[Any], Any]
    sites: tuple[Site, ...]
    operands: tuple[OperandSite, ...] = ()
    varied: bool = False
    leading: int = 0


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A residual stream of (…, D) tokens, read through nothing but LayerNorms.

    added: every Linear whose outputs are added to it, with the LayerScale behind it, if there is one;  tokens: parameters
    (…, D) that are added as they are;  read: each LayerNorm, over one token or several side by side, with the Linears that
    take its output and nothing else;  out: the LayerNorm that leaves the model, where no Linear follows.
    """

    width: int
    added: Mapping[str, str | None]
    read: Mapping[str, tuple[str, ...]]
    tokens: tuple[str, ...] = ()
    out: str | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What a fused kernel of one attention must cope with: `n_tokens` of `head_dim` channels a head.

    `in_heads`: q and k are what they are only within heads (qk_norm), so they have no integers as (B, T, heads·d), where
    a quantizer would keep the kernel fused; such an attention shows no operands.
    """

    path: str
    n_tokens: int
    head_dim: int
    in_heads: bool = False


def submodule(model: nn.Module, path: str, kind: type[nn.Module]) -> nn.Module:
    """The module at `path`; TypeError if it is not a `kind` (a fault of the family file, not of the user)."""
    module = model.get_submodule(path)
    if not isinstance(module, kind):
        raise TypeError(f"{path} is a {type(module).__name__}, expected {kind.__name__}")
    return module
