"""From a bundle back to a model: the fake-quant reference that everything deployed is held against."""

from torch import nn

from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError
from erq_export.contract.part import install
from erq_export.contract.registry import resolve
from erq_export.contract.sites import AttentionShape
from erq_export.models import FAMILIES
from erq_export.models.family import Family
from erq_export.models.names import architecture
from erq_export.models.sizes import check_size

SOURCE = "the bundle's model_args"  # where a file's arguments come from, in messages


def reference_model(bundle: Bundle) -> nn.Module:
    """The fake-quant model in evaluation mode: the bundle's integers, float32 arithmetic.

    DataError where the float leftovers do not fit the architecture that the bundle names.
    """
    model = _prepared(bundle)
    own: set[str] = set()
    for path, part in (*bundle.layers.items(), *bundle.operands.items()):
        install(model, path, part)
        own |= {f"{path}.{name}" for name in model.get_submodule(path).state_dict()}
    missing, surplus = model.load_state_dict(bundle.leftovers, strict=False)
    if surplus or set(missing) != own:
        raise DataError("the bundle's float weights do not fit its architecture", fix="calibrate again")
    return model.eval()


def attention_shapes(bundle: Bundle) -> tuple[AttentionShape, ...]:
    """What a target's integer attention must cope with."""
    return _family(bundle).attention(_prepared(bundle))


def _family(bundle: Bundle) -> Family:
    family: Family = resolve("family", bundle.identity.family, FAMILIES)
    return family


def _prepared(bundle: Bundle) -> nn.Module:
    name, args = bundle.identity.timm_name, bundle.identity.model_args
    check_size(name, args, source=SOURCE)
    return _family(bundle).prepare(architecture(name, args, source=SOURCE))
