"""The family of timm's VisionTransformer: ViT and DeiT with plain pre-norm blocks."""

from typing import Any, cast

import timm.models.vision_transformer as timm_vit
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from erq_export.models.family import Site, Stage, not_understood, patch_tokens

NAME = "vit"
HEADLESS = nn.Identity


class VitFamily:
    """norm1 → qkv, norm2 → fc1; proj, fc2, the patch embedding and the head have no LayerNorm of their own."""

    name = NAME

    def claims(self, model: nn.Module) -> bool:
        return type(model) is timm_vit.VisionTransformer

    def input_size(self, model: nn.Module) -> tuple[int, int, int]:
        embed: Any = model.patch_embed
        return (embed.proj.in_channels, *embed.img_size)

    def prepare(self, model: nn.Module) -> nn.Module:
        vit: Any = model
        if vit.attn_pool is not None:
            raise not_understood("attn_pool", vit.attn_pool, family=NAME)
        if getattr(vit, "dynamic_img_size", False):
            raise not_understood("patch_embed", vit.patch_embed, family=f"{NAME} (with dynamic_img_size)")
        for i, block in enumerate(vit.blocks):
            self._check_block(f"blocks.{i}", block)
            block.attn.fused_attn = False  # the two products must be visible to the exporter
        if not isinstance(vit.head, (nn.Linear, HEADLESS)):
            raise not_understood("head", vit.head, family=NAME)
        vit.patch_embed = patch_tokens("patch_embed", vit.patch_embed, family=NAME)
        return model.eval().requires_grad_(False)

    def _check_block(self, path: str, block: Any) -> None:
        if type(block) is not timm_vit.Block:
            raise not_understood(path, block, family=NAME)
        for part, kind in (("attn", Attention), ("mlp", Mlp), ("norm1", nn.LayerNorm), ("norm2", nn.LayerNorm)):
            module = block.get_submodule(part)
            if not isinstance(module, kind) or (
                kind is nn.LayerNorm and (module.weight is None or module.bias is None)
            ):
                raise not_understood(f"{path}.{part}", module, family=NAME)
        for part in ("attn.norm", "mlp.norm"):
            if not isinstance(block.get_submodule(part), nn.Identity):
                raise not_understood(f"{path}.{part}", block.get_submodule(part), family=NAME)
        gate = cast(nn.Module | None, block.attn.gate)
        if gate is not None:
            raise not_understood(f"{path}.attn.gate", gate, family=NAME)

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        vit: Any = model

        def embed(x: Tensor) -> Tensor:
            return cast(Tensor, vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x)))))

        def head(x: Tensor) -> Tensor:
            return cast(Tensor, vit.forward_head(vit.norm(x)))

        blocks = tuple(
            Stage(
                name=f"blocks.{i}",
                forward=block,
                sites=(
                    Site(path=f"blocks.{i}.attn.qkv", role="qkv", norm=f"blocks.{i}.norm1"),
                    Site(path=f"blocks.{i}.attn.proj", role="proj"),
                    Site(path=f"blocks.{i}.mlp.fc1", role="fc1", norm=f"blocks.{i}.norm2"),
                    Site(path=f"blocks.{i}.mlp.fc2", role="fc2"),
                ),
            )
            for i, block in enumerate(vit.blocks)
        )
        head_sites = () if isinstance(vit.head, HEADLESS) else (Site(path="head", role="head"),)
        return (
            Stage(name="embed", forward=embed, sites=(Site(path="patch_embed.proj", role="patch"),)),
            *blocks,
            Stage(name="head", forward=head, sites=head_sites),
        )

    def n_attention(self, model: nn.Module) -> int:
        return len(model.get_submodule("blocks")._modules)


FAMILY = VitFamily()
