"""A model that the caller built: which timm architecture it is, proven by building that anew and comparing.

A bundle names an architecture and rebuilds it anywhere, so a module that no name and arguments give again is refused.
"""

import copy
from typing import Any

import timm.models.deit as timm_deit
import timm.models.swin_transformer as timm_swin
import timm.models.vision_transformer as timm_vit
import torch
from timm.data import resolve_model_data_config
from torch import nn

from erq_export.contract.errors import SpecError
from erq_export.contract.identity import Identity
from erq_export.contract.preprocess import Preprocess
from erq_export.models.checkpoints import refuse_non_finite
from erq_export.models.family import family_of
from erq_export.models.loading import Loaded
from erq_export.models.names import architecture

Architecture = tuple[str, dict[str, Any]]
BASES = {
    timm_vit.VisionTransformer: "vit_tiny_patch16_224",
    timm_deit.VisionTransformerDistilled: "deit_tiny_distilled_patch16_224",
    timm_swin.SwinTransformer: "swin_tiny_patch4_window7_224",
}
CLOSE = 1e-4  # relative; the same operators on the same weights, maybe fused otherwise


def own_model(module: nn.Module, known: Architecture | None, preprocess: dict[str, Any]) -> Loaded:
    """The module as a float model that can be calibrated; it stays as it is.

    known: (timm name, arguments) that build it, where they are not to be found out.  SpecError where it is of no known
    family, or where name and arguments do not give the same function again.
    """
    own = copy.deepcopy(module).cpu().float().eval()
    family = family_of(own)
    refuse_non_finite(own)
    name, args = known or guessed(own)
    again = architecture(name, args)
    _check_equal(own, again, family.input_size(own), name, args)
    size = family.input_size(again)
    config = {**resolve_model_data_config(again), "input_size": size}
    identity = Identity(
        name=type(module).__name__,
        timm_name=name,
        model_args=args,
        weights="module",
        weights_sha256=None,
        family=family.name,
        preprocess=Preprocess.from_config(config, preprocess),
    )
    return Loaded(model=family.prepare(again), family=family, identity=identity)


def guessed(model: nn.Module) -> Architecture:
    """(timm name, arguments) of a model of a known class, read off its modules."""
    for kind, name in BASES.items():
        if type(model) is kind:
            return name, _swin(model) if kind is timm_swin.SwinTransformer else _vit(model)
    raise SpecError(
        f"a {type(model).__name__} is no timm ViT, DeiT or Swin",
        fix="architecture=(timm name, arguments), or a model of one of these classes",
    )


def _vit(vit: Any) -> dict[str, Any]:
    block, embed = vit.blocks[0], vit.patch_embed
    args: dict[str, Any] = {
        "img_size": tuple(embed.img_size),
        "patch_size": tuple(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "num_classes": vit.num_classes,
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / vit.embed_dim,
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "global_pool": vit.global_pool,
        "class_token": vit.cls_token is not None,
        "no_embed_class": vit.no_embed_class,
        "pre_norm": not isinstance(vit.norm_pre, nn.Identity),
        "fc_norm": not isinstance(vit.fc_norm, nn.Identity),
    }
    if not isinstance(block.ls1, nn.Identity):
        args["init_values"] = 1e-5
    if getattr(vit, "num_reg_tokens", 0):
        args["reg_tokens"] = vit.num_reg_tokens
    if type(vit) is timm_deit.VisionTransformerDistilled:  # these are its own doing
        for name in ("class_token", "no_embed_class", "fc_norm", "global_pool", "qk_norm", "pre_norm"):
            args.pop(name)
    return args


def _swin(swin: Any) -> dict[str, Any]:
    embed, blocks = swin.patch_embed, [layer.blocks for layer in swin.layers]
    first = blocks[0][0]
    return {
        "img_size": tuple(embed.img_size),
        "patch_size": embed.patch_size[0],
        "in_chans": embed.proj.in_channels,
        "num_classes": swin.num_classes,
        "embed_dim": embed.proj.out_channels,
        "depths": tuple(len(stage) for stage in blocks),
        "num_heads": tuple(stage[0].attn.num_heads for stage in blocks),
        "window_size": tuple(first.window_size),
        "mlp_ratio": first.mlp.fc1.out_features / first.mlp.fc1.in_features,
        "global_pool": swin.head.global_pool.pool_type,
    }


@torch.no_grad()
def _check_equal(own: nn.Module, again: nn.Module, size: tuple[int, int, int], name: str, args: dict[str, Any]) -> None:
    """Put the module's weights into the rebuilt architecture and hold both against each other on noise."""
    words = ", ".join(f"{k}={v}" for k, v in args.items())
    fix = f"architecture=(timm name, arguments) as the module was built; {name} with {words} was tried"
    try:
        again.load_state_dict(own.state_dict(), strict=True)
    except RuntimeError as e:
        raise SpecError(
            f"the module cannot be built again by name: {str(e).splitlines()[-1].strip()[:200]}", fix=fix
        ) from e
    pixels = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    wanted, found = own(pixels), again(pixels)
    if wanted.shape != found.shape or float((wanted - found).norm()) > CLOSE * float(wanted.norm()):
        raise SpecError("the module computes something else than the architecture of its name", fix=fix)
