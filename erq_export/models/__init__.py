"""Model families: a table of contents, and which family a model belongs to."""

from torch import nn

from erq_export.errors import SpecError
from erq_export.models.family import Family
from erq_export.registry import resolve

FAMILIES: dict[str, str] = {
    "vit": "erq_export.models.vit:FAMILY",
    "swin": "erq_export.models.swin:FAMILY",
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
