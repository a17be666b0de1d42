"""Model families and the short names of the models of the paper."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from erq_export.errors import SpecError
from erq_export.models.family import Family
from erq_export.registry import resolve

FAMILIES: dict[str, str] = {
    "vit": "erq_export.models.vit:FAMILY",
}


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A short name: the exact timm tag behind it, where its preprocessing or ridge differs from the defaults."""

    timm_name: str
    ridge: float = 1e4  # ERQ, section 5 set-up
    preprocess: dict[str, Any] = field(default_factory=dict)


DEIT = {"crop_pct": 0.875}  # as in the paper's evaluation; timm's own configuration says 0.9

ALIASES: dict[str, Alias] = {
    "vit_t": Alias(timm_name="vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    "vit_s": Alias(timm_name="vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "vit_b": Alias(timm_name="vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "deit_t": Alias(timm_name="deit_tiny_patch16_224.fb_in1k", ridge=1e3, preprocess=DEIT),
    "deit_s": Alias(timm_name="deit_small_patch16_224.fb_in1k", preprocess=DEIT),
    "deit_b": Alias(timm_name="deit_base_patch16_224.fb_in1k", preprocess=DEIT),
    "demo": Alias(timm_name="vit_tiny_patch16_224"),
}


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
