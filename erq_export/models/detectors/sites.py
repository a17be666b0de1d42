"""Which layers of a detector's parts are quantized, and what a grid of their input can be folded into.

All of them: every Linear and every convolution. What computes in floating point is LayerNorm, softmax and the transposed
convolution that doubles a mask's sides.
"""

from dataclasses import replace
from typing import Any, cast

from torch import nn

from erq_export.contract.kernel import Kernel
from erq_export.contract.sites import Site
from erq_export.models.detectors.body import Body
from erq_export.models.detectors.detector import Detector


def linear_sites(body: Body) -> tuple[Site, ...]:
    """Those of Swin by path within a prepared body, in the order in which data reaches them."""
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


def body_sites(body: Body) -> tuple[Site, ...]:
    """Swin's, then the pyramid's and the proposal head's, of which the latter sees every level of the pyramid."""
    return (*linear_sites(body), *module_sites(body.fpn, "fpn."), *module_sites(body.rpn, "rpn."))


def detector_sites(detector: Detector) -> tuple[Site, ...]:
    """Every site of a prepared detector by its path there."""
    heads = [(f"{kind}.{i}.", head) for kind in ("box", "mask") for i, head in enumerate(getattr(detector, kind))]
    own = [site for prefix, head in heads for site in module_sites(head, prefix)]
    return (*(_within("body.", site) for site in body_sites(detector.body)), *own)


def _within(prefix: str, site: Site) -> Site:
    """The site by its paths in what holds the body."""
    norm, pad, values = (path and f"{prefix}{path}" for path in (site.norm, site.pad, site.values))
    return replace(site, path=f"{prefix}{site.path}", norm=norm, pad=pad, values=values)


def module_sites(part: nn.Module, prefix: str = "") -> tuple[Site, ...]:
    """Every convolution and Linear of a box or mask head, or of a piece of the body, in the order in which they stand."""
    sites: list[Site] = []
    for path, module in part.named_modules():
        if isinstance(module, nn.Conv2d):
            sites.append(Site(path=prefix + path, role="conv", kernel=Kernel.of(module)))
        elif isinstance(module, nn.Linear):
            sites.append(Site(path=prefix + path, role="fc"))
    return tuple(sites)
