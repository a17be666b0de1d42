"""What a model family must tell: which layers are quantized, which LayerNorm feeds which, and how data walks through."""

from collections import OrderedDict
from typing import Protocol, cast

import torch
from timm.layers import Format
from torch import Tensor, nn

from erq_export.contract.errors import SpecError
from erq_export.contract.registry import resolve
from erq_export.contract.sites import OPERANDS, AttentionShape, OperandSite, Stage, Stream
from erq_export.contract.state import State
from erq_export.models import FAMILIES


class Family(Protocol):
    """One file a family; registered by one line in `erq_export.models`."""

    name: str

    def claims(self, model: nn.Module) -> bool:
        """Is this model built from this family's classes?"""

    def input_size(self, model: nn.Module) -> tuple[int, int, int]:
        """(channels, height, width) of the image that the unprepared model takes."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Bring the model into the form that is calibrated and exported, function unchanged:
        every quantized layer an nn.Linear. SpecError naming the first module not understood."""

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        """The prepared model as consecutive stages; composed, they are its forward."""

    def attention(self, model: nn.Module) -> tuple[AttentionShape, ...]:
        """The prepared model's attention operators, in order."""

    def streams(self, model: nn.Module) -> tuple[Stream, ...]:
        """The prepared model's residual streams that may be given another basis; none is always right."""


def not_understood(path: str, module: nn.Module, *, family: str) -> SpecError:
    """The refusal for a module that a family does not know how to quantize."""
    return SpecError(
        f"{path} is a {type(module).__name__}, which the {family} family does not know",
        fix="use a model of plain timm ViT, DeiT or Swin blocks (erq-export models lists them), or add the family",
    )


class Operand(nn.Module):
    """Where an operand of attention passes by, unchanged, until a quantizer takes its place.

    `beside` is what it will be multiplied with, for whoever watches: the error of a quantized softmax is that of P v.
    """

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:  # noqa: ARG002 - seen by hooks
        return x


def operand_sites(attn: str) -> tuple[OperandSite, ...]:
    """The four operands of the attention at this path, in the order in which they are computed."""
    return tuple(OperandSite(path=f"{attn}.{role}", role=role) for role in OPERANDS)


@torch.no_grad()
def scale_queries(qkv: nn.Linear, scale: float) -> None:
    """Fold the scale of attention's logits into the first third of qkv's rows: q kᵀ then needs no factor.

    Exact where the scale is a power of two (d = 16, 64), else one rounding a weight. A factor between a quantized q and
    its product would cost TensorRT the integer kernel; rows are quantized one by one, so a row's factor changes no code.
    """
    n = qkv.out_features // 3
    qkv.weight[:n] *= scale
    if qkv.bias is not None:
        qkv.bias[:n] *= scale


BACK = "back"


def add_back(model: nn.Module, path: str, width: int) -> nn.Linear:
    """Put a Linear behind the LayerNorm at `path`, which becomes `path.norm`: it turns what leaves the model back."""
    norm, back = model.get_submodule(path), nn.Linear(width, width)
    model.set_submodule(path, nn.Sequential(OrderedDict([("norm", norm), (BACK, back)])))
    return back


class PatchTokens(nn.Module):
    """Patch embedding with stride = kernel as one matrix product: (B, C, H, W) → (B, H/p·W/p, D), or (B, H/p, W/p, D).

    The convolution's filters become the rows of a Linear over flattened patches, so that it is quantized, and runs
    in integers, like every other layer.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, *, flatten: bool = True) -> None:
        super().__init__()
        self.flatten = flatten
        self.patch = (conv.kernel_size[0], conv.kernel_size[1])
        out, _, height, width = conv.weight.shape
        self.proj = nn.Linear(conv.in_channels * height * width, out, bias=conv.bias is not None)
        self.proj.weight = nn.Parameter(conv.weight.detach().reshape(out, -1).clone(), requires_grad=False)
        if conv.bias is not None:
            self.proj.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        p, q = self.patch
        x = x.reshape(b, c, h // p, p, w // q, q).permute(0, 2, 4, 1, 3, 5)  # (B, H/p, W/q, C, p, q)
        grid = (h // p * (w // q),) if self.flatten else (h // p, w // q)
        x = x.reshape(b, *grid, c * p * q)
        out: Tensor = self.norm(self.proj(x))
        return out


def patch_tokens(path: str, embed: nn.Module, *, family: str) -> PatchTokens:
    """PatchTokens for a timm PatchEmbed; SpecError where its convolution overlaps, pads or dilates."""
    conv = getattr(embed, "proj", None)
    flatten = getattr(embed, "flatten", False)
    if not isinstance(conv, nn.Conv2d) or not (flatten or getattr(embed, "output_fmt", None) == Format.NHWC):
        raise not_understood(path, embed, family=family)
    plain = conv.stride == conv.kernel_size and conv.padding in ((0, 0), "valid")
    if not (plain and conv.dilation == (1, 1) and conv.groups == 1):
        raise not_understood(f"{path}.proj", conv, family=family)
    patch, size = conv.kernel_size, cast(tuple[int, int], embed.img_size)
    if embed.dynamic_img_pad or any(s % p for s, p in zip(size, patch, strict=True)):
        raise SpecError(
            f"the input of {size[0]} × {size[1]} pixels is no whole number of {patch[0]} × {patch[1]} patches",
            fix=f"--model-arg img_size={max(1, size[0] // patch[0]) * patch[0]}",
        )
    norm = embed.norm if isinstance(embed.norm, nn.Module) else nn.Identity()
    return PatchTokens(conv, norm, flatten=flatten)


@torch.no_grad()
def run(stages: tuple[Stage, ...], x: State) -> State:
    """The whole model, stage after stage."""
    for stage in stages:
        x = stage.forward(x)
    return x


def family_of(model: nn.Module) -> Family:
    """The family that claims the model; SpecError naming its class and the families there are."""
    for name in FAMILIES:
        family: Family = resolve("family", name, FAMILIES)
        if family.claims(model):
            return family
    raise SpecError(
        f"no family is known for a {type(model).__name__}",
        fix=f"families: {', '.join(FAMILIES)}; or add one file to erq_export/models",
    )
