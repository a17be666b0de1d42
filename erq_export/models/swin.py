"""The family of timm's SwinTransformer: Swin v1, shifted windows, relative position bias, patch merging.

Letters:  B images of H × W tokens with C channels;  h heads of d channels;  N tokens a window, w windows an image
"""

from typing import Any, cast

import timm.models.swin_transformer as timm_swin
from timm.layers import ClassifierHead, Mlp
from torch import Tensor, nn

from erq_export.contract.sites import AttentionShape, Site, Stage, Stream
from erq_export.models.family import Operand, not_understood, operand_sites, patch_tokens, scale_queries

NAME = "swin"


class WindowAttention(nn.Module):
    """softmax(q kᵀ/√d + bias) v within each window: (B·w, N, C) → (B·w, N, C).

    timm adds the position bias to 4-D scores and then, where windows are shifted, the mask to 5-D scores. Here both are
    one constant beside 4-D scores, a shifted image's windows lying among its heads: the form that TensorRT fuses.
    """

    def __init__(self, attn: timm_swin.WindowAttention, mask: Tensor | None) -> None:
        super().__init__()
        self.n_heads, self.d = attn.num_heads, attn.qkv.out_features // (3 * attn.num_heads)
        self.qkv, self.proj = attn.qkv, attn.proj
        scale_queries(self.qkv, attn.scale)
        self.q, self.k, self.v, self.softmax = Operand(), Operand(), Operand(), Operand()
        bias = attn._get_rel_pos_bias().detach()  # (1, h, N, N)
        if mask is not None:
            bias = (bias + mask[:, None]).flatten(0, 1)[None]  # (1, w·h, N, N)
        self.bias: Tensor
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor, mask: None = None) -> Tensor:  # noqa: ARG002 - timm's block passes its mask, now None
        h, w = self.n_heads, self.bias.shape[1] // self.n_heads  # w is 1 where no mask tells the windows apart
        q, k, v = self.qkv(x).chunk(3, -1)  # (B·w, N, C) each
        q, k, v = (self._heads(t, w) for t in (self.q(q), self.k(k), self.v(v)))  # (B, w·h, N, d)
        scores = q @ k.transpose(-2, -1) + self.bias  # (B, w·h, N, N)
        x = (self.softmax(scores.softmax(-1), v) @ v).unflatten(1, (w, h))  # (B, w, h, N, d)
        out: Tensor = self.proj(x.transpose(2, 3).flatten(3).flatten(0, 1))
        return out

    def _heads(self, x: Tensor, w: int) -> Tensor:
        return x.reshape(-1, w, x.shape[1], self.n_heads, self.d).transpose(2, 3).flatten(1, 2)


class SwinFamily:
    """norm1 → qkv, norm2 → fc1, merging's norm → reduction; proj, fc2, patch embedding and head have no LayerNorm.

    Roll and window partition move the tokens of norm1 about, which folding does not notice. Padding does: zeros put
    in after the LayerNorm would have to become another constant. A block that pads therefore keeps its qkv unfolded.
    """

    name = NAME

    def claims(self, model: nn.Module) -> bool:
        return type(model) is timm_swin.SwinTransformer

    def input_size(self, model: nn.Module) -> tuple[int, int, int]:
        embed: Any = model.patch_embed
        return (embed.proj.in_channels, *embed.img_size)

    def prepare(self, model: nn.Module) -> nn.Module:
        swin: Any = model
        if getattr(
            swin, "dynamic_img_size", not swin.patch_embed.strict_img_size
        ):  # timm before 1.0.31 has no such field
            raise not_understood("patch_embed", swin.patch_embed, family=f"{NAME} (with dynamic_img_size)")
        swin.patch_embed = patch_tokens("patch_embed", swin.patch_embed, family=NAME)
        for i, layer in enumerate(swin.layers):
            self._check_merging(f"layers.{i}.downsample", layer.downsample)
            for j, block in enumerate(layer.blocks):
                self._check_block(f"layers.{i}.blocks.{j}", block)
                block.attn = WindowAttention(block.attn, block.attn_mask)
                block.attn_mask = None
        self._check_head(swin.head)
        return model.eval().requires_grad_(False)

    def _check_merging(self, path: str, merging: nn.Module) -> None:
        if isinstance(merging, nn.Identity):
            return
        if type(merging) is not timm_swin.PatchMerging:
            raise not_understood(path, merging, family=NAME)
        _check_parts(path, merging, {"norm": nn.LayerNorm, "reduction": nn.Linear})

    def _check_block(self, path: str, block: nn.Module) -> None:
        if type(block) is not timm_swin.SwinTransformerBlock:
            raise not_understood(path, block, family=NAME)
        parts = {"attn": timm_swin.WindowAttention, "mlp": Mlp, "norm1": nn.LayerNorm, "norm2": nn.LayerNorm}
        _check_parts(path, block, parts | {"mlp.norm": nn.Identity})

    def _check_head(self, head: nn.Module) -> None:
        if type(head) is not ClassifierHead or head.use_conv:
            raise not_understood("head", head, family=NAME)
        if not head.global_pool.pool_type:
            raise not_understood("head.global_pool", head.global_pool, family=f"{NAME} (without pooling)")

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        swin: Any = model
        stages = [Stage(name="embed", forward=swin.patch_embed, sites=(Site(path="patch_embed.proj", role="patch"),))]
        for i, layer in enumerate(swin.layers):
            merging = f"layers.{i}.downsample"
            if not isinstance(layer.downsample, nn.Identity):
                site = Site(path=f"{merging}.reduction", role="reduction", norm=f"{merging}.norm")
                stages.append(Stage(name=merging, forward=layer.downsample, sites=(site,)))
            for j, block in enumerate(layer.blocks):
                path = f"layers.{i}.blocks.{j}"
                sites = (
                    Site(path=f"{path}.attn.qkv", role="qkv", norm=None if _pads(block) else f"{path}.norm1"),
                    Site(path=f"{path}.attn.proj", role="proj", values=f"{path}.attn.qkv"),
                    Site(path=f"{path}.mlp.fc1", role="fc1", norm=f"{path}.norm2"),
                    Site(path=f"{path}.mlp.fc2", role="fc2"),
                )
                stages.append(Stage(name=path, forward=block, sites=sites, operands=operand_sites(f"{path}.attn")))

        def head(x: Tensor) -> Tensor:
            return cast(Tensor, swin.forward_head(swin.norm(x)))

        head_sites = () if isinstance(swin.head.fc, nn.Identity) else (Site(path="head.fc", role="head"),)
        return (*stages, Stage(name="head", forward=head, sites=head_sites))

    def attention(self, model: nn.Module) -> tuple[AttentionShape, ...]:
        return tuple(
            AttentionShape(path=path, n_tokens=module.bias.shape[-1], head_dim=module.d)
            for path, module in model.named_modules()
            if isinstance(module, WindowAttention)
        )

    def streams(self, model: nn.Module) -> tuple[Stream, ...]:
        """One a layer that a merging's reduction begins; the first layer begins with a LayerNorm. Zeros that a block puts in
        behind norm1 are no tokens of another basis: a layer whose blocks pad has no stream."""
        swin: Any = model
        streams: list[Stream] = []
        for i, layer in enumerate(swin.layers):
            if isinstance(layer.downsample, nn.Identity) or any(_pads(block) for block in layer.blocks):
                continue
            added: dict[str, str | None] = {f"layers.{i}.downsample.reduction": None}
            read: dict[str, tuple[str, ...]] = {}
            for path in (f"layers.{i}.blocks.{j}" for j in range(len(layer.blocks))):
                added |= {f"{path}.attn.proj": None, f"{path}.mlp.fc2": None}
                read |= {f"{path}.norm1": (f"{path}.attn.qkv",), f"{path}.norm2": (f"{path}.mlp.fc1",)}
            out = None
            if i + 1 < len(swin.layers):
                read[f"layers.{i + 1}.downsample.norm"] = (f"layers.{i + 1}.downsample.reduction",)
            elif isinstance(swin.head.fc, nn.Linear):
                read["norm"] = ("head.fc",)
            else:
                out = "norm"
            streams.append(Stream(width=layer.blocks[0].dim, added=added, read=read, out=out))
        return tuple(streams)


def _check_parts(path: str, parent: nn.Module, parts: dict[str, type[nn.Module]]) -> None:
    for part, kind in parts.items():
        module = parent.get_submodule(part)
        bare = isinstance(module, nn.LayerNorm) and (module.weight is None or module.bias is None)
        if not isinstance(module, kind) or bare:  # folding writes both parameters of a LayerNorm
            raise not_understood(f"{path}.{part}", module, family=NAME)


def _pads(block: Any) -> bool:
    """Are the block's H × W tokens no whole number of windows?"""
    return any(size % window for size, window in zip(block.input_resolution, block.window_size, strict=True))


FAMILY = SwinFamily()
