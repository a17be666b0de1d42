"""Which Linear layers of a prepared body are quantized, and what a grid of their input can be folded into."""

from typing import Any, cast

from torch import nn

from erq_export.contract.sites import Site
from erq_export.models.detectors.body import Body


def linear_sites(body: Body) -> tuple[Site, ...]:
    """By path within the body, in the order in which data reaches them. The pyramid and the heads are convolutions."""
    sites = [Site(path="patch_embed.proj", role="patch")]
    for i, layer in enumerate(cast(list[Any], body.layers)):
        merging = f"layers.{i}.downsample"
        if not isinstance(layer.downsample, nn.Identity):
            sites.append(Site(path=f"{merging}.reduction", role="reduction", norm=f"{merging}.norm"))
        for path in (f"layers.{i}.blocks.{j}" for j in range(len(layer.blocks))):
            sites += (
                Site(path=f"{path}.attn.qkv", role="qkv", norm=f"{path}.norm1", pad=f"{path}.pad"),
                Site(path=f"{path}.attn.proj", role="proj", values=f"{path}.attn.qkv"),
                Site(path=f"{path}.mlp.fc1", role="fc1", norm=f"{path}.norm2"),
                Site(path=f"{path}.mlp.fc2", role="fc2"),
            )
    return tuple(sites)
