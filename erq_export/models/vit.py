"""The family of timm's VisionTransformer: ViT and DeiT, plain or distilled, with plain pre-norm blocks.

Letters:  B images of T tokens with D channels;  h heads of d channels
"""

from typing import Any, cast

import timm.layers as timm_layers
import timm.models.deit as timm_deit
import timm.models.vision_transformer as timm_vit
from timm.layers import Mlp
from torch import Tensor, nn

from erq_export.contract.sites import AttentionShape, Site, Stage, Stream
from erq_export.models.family import Operand, not_understood, operand_sites, patch_tokens, scale_queries

NAME = "vit"
HEADLESS = nn.Identity
TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")
HEADS = ("head", "head_dist")  # a distilled DeiT averages the logits of two, each of its own token


class Attention(nn.Module):
    """softmax(q kᵀ/√d) v with its operands in view: (B, T, D) → (B, T, D).

    q, k and v pass as (B, T, h·d), before they are cut into heads: there a quantizer keeps TensorRT's kernels fused.
    Normalised q and k (qk_norm) exist within heads only; the scale then stays a factor.
    """

    def __init__(self, attn: timm_layers.Attention, n_tokens: int) -> None:
        super().__init__()
        self.n_heads, self.d, self.n_tokens = attn.num_heads, attn.head_dim, n_tokens
        self.qkv, self.proj = attn.qkv, attn.proj
        self.q_norm, self.k_norm = attn.q_norm, attn.k_norm
        self.q, self.k, self.v, self.softmax = Operand(), Operand(), Operand(), Operand()
        self.in_heads = not isinstance(attn.q_norm, nn.Identity)
        self.scale = attn.scale if self.in_heads else 1.0
        if not self.in_heads:
            scale_queries(self.qkv, attn.scale)

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:  # noqa: ARG002 - timm's call
        q, k, v = self.qkv(x).chunk(3, -1)  # (B, T, h·d) each
        q, k, v = (self._heads(t) for t in (self.q(q), self.k(k), self.v(v)))  # (B, h, T, d)
        q, k = self.q_norm(q), self.k_norm(k)
        q = q * self.scale if self.in_heads else q
        scores = q @ k.transpose(-2, -1)  # (B, h, T, T)
        x = self.softmax(scores.softmax(-1), v) @ v  # (B, h, T, d)
        out: Tensor = self.proj(x.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.n_heads, self.d).transpose(1, 2)


class VitFamily:
    """norm1 → qkv, norm2 → fc1; proj, fc2, the patch embedding and the head have no LayerNorm of their own."""

    name = NAME

    def claims(self, model: nn.Module) -> bool:
        return type(model) in (timm_vit.VisionTransformer, timm_deit.VisionTransformerDistilled)

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
            block.attn = Attention(block.attn, vit.patch_embed.num_patches + vit.num_prefix_tokens)
        for name, head in _heads_of(vit).items():
            if not isinstance(head, (nn.Linear, HEADLESS)):
                raise not_understood(name, head, family=NAME)
        vit.patch_embed = patch_tokens("patch_embed", vit.patch_embed, family=NAME)
        return model.eval().requires_grad_(False)

    def _check_block(self, path: str, block: Any) -> None:
        if type(block) is not timm_vit.Block:
            raise not_understood(path, block, family=NAME)
        for part, kind in (
            ("attn", timm_layers.Attention),
            ("mlp", Mlp),
            ("norm1", nn.LayerNorm),
            ("norm2", nn.LayerNorm),
        ):
            module = block.get_submodule(part)
            if not isinstance(module, kind) or (
                kind is nn.LayerNorm and (module.weight is None or module.bias is None)
            ):
                raise not_understood(f"{path}.{part}", module, family=NAME)
        for part in ("attn.norm", "mlp.norm"):
            if not isinstance(block.get_submodule(part), nn.Identity):
                raise not_understood(f"{path}.{part}", block.get_submodule(part), family=NAME)
        gate = cast(nn.Module | None, getattr(block.attn, "gate", None))  # since timm 1.0.28
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
                    Site(path=f"blocks.{i}.attn.proj", role="proj", values=f"blocks.{i}.attn.qkv"),
                    Site(path=f"blocks.{i}.mlp.fc1", role="fc1", norm=f"blocks.{i}.norm2"),
                    Site(path=f"blocks.{i}.mlp.fc2", role="fc2"),
                ),
                operands=() if block.attn.in_heads else operand_sites(f"blocks.{i}.attn"),
                leading=vit.num_prefix_tokens if vit.global_pool == "token" else 0,
            )
            for i, block in enumerate(vit.blocks)
        )
        heads = [name for name, module in _heads_of(vit).items() if not isinstance(module, HEADLESS)]
        return (
            Stage(name="embed", forward=embed, sites=(Site(path="patch_embed.proj", role="patch"),)),
            *blocks,
            Stage(name="head", forward=head, sites=tuple(Site(path=name, role="head") for name in heads)),
        )

    def attention(self, model: nn.Module) -> tuple[AttentionShape, ...]:
        vit: Any = model
        return tuple(
            AttentionShape(path=f"blocks.{i}.attn", n_tokens=a.n_tokens, head_dim=a.d, in_heads=a.in_heads)
            for i, a in enumerate(block.attn for block in vit.blocks)
        )

    def streams(self, model: nn.Module) -> tuple[Stream, ...]:
        """One, unless a LayerNorm writes to it or it is read without one. Maxima over tokens keep no other basis."""
        vit: Any = model
        last = [name for name in ("norm", "fc_norm") if isinstance(getattr(vit, name, None), nn.LayerNorm)]
        embedded = isinstance(vit.norm_pre, nn.Identity) and isinstance(vit.patch_embed.norm, nn.Identity)
        if not embedded or len(last) != 1 or vit.global_pool not in ("token", "avg", ""):
            return ()
        heads = tuple(name for name, module in _heads_of(vit).items() if not isinstance(module, HEADLESS))
        added: dict[str, str | None] = {"patch_embed.proj": None}
        read: dict[str, tuple[str, ...]] = {}
        for i, block in enumerate(vit.blocks):
            for k, linear in ((1, "attn.proj"), (2, "mlp.fc2")):
                scaled = isinstance(block.get_submodule(f"ls{k}"), timm_vit.LayerScale)
                added[f"blocks.{i}.{linear}"] = f"blocks.{i}.ls{k}" if scaled else None
            read |= {f"blocks.{i}.norm1": (f"blocks.{i}.attn.qkv",), f"blocks.{i}.norm2": (f"blocks.{i}.mlp.fc1",)}
        tokens = tuple(name for name in TOKENS if getattr(vit, name, None) is not None)
        if heads:
            read[last[0]] = heads
        return (Stream(width=vit.embed_dim, added=added, read=read, tokens=tokens, out=None if heads else last[0]),)


def _heads_of(vit: Any) -> dict[str, nn.Module]:
    return {name: getattr(vit, name) for name in HEADS if hasattr(vit, name)}


FAMILY = VitFamily()
