"""From a bundle back to a model: the fake-quant reference that everything deployed is held against."""

from typing import cast

from torch import Tensor, nn

from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError
from erq_export.contract.part import install
from erq_export.contract.quantized import QuantizedConv
from erq_export.contract.registry import resolve
from erq_export.contract.sites import AttentionShape, submodule
from erq_export.models import FAMILIES
from erq_export.models.detectors import family as detectors
from erq_export.models.detectors.loading import canvas_of, detector_of
from erq_export.models.family import BACK, Family, add_back
from erq_export.models.names import architecture
from erq_export.models.sizes import check_size

SOURCE = "the bundle's model_args"  # where a file's arguments come from, in messages


def reference_model(bundle: Bundle) -> nn.Module:
    """The fake-quant model in evaluation mode: the bundle's integers, float32 arithmetic.

    DataError where the float leftovers do not fit the architecture that the bundle names.
    """
    model = _prepared(bundle)
    for stream in _family(bundle).streams(model):
        if stream.out is not None and f"{stream.out}.{BACK}.weight" in bundle.leftovers:
            add_back(model, stream.out, stream.width)
    own: set[str] = set()
    _check_fit(model, bundle)
    for path, part in (*bundle.layers.items(), *bundle.operands.items()):
        install(model, path, part)
        own |= {f"{path}.{name}" for name in model.get_submodule(path).state_dict()}
    missing, surplus = model.load_state_dict(bundle.leftovers, strict=False)
    if surplus or set(missing) != own:
        raise DataError("the bundle's float weights do not fit its architecture", fix="calibrate again")
    return model.eval()


def _check_fit(model: nn.Module, bundle: Bundle) -> None:
    """DataError where a part of the bundle has no place of its shape in the prepared model, or a place has no part."""
    stages = _family(bundle).stages(model)
    layers = {site.path: site for stage in stages for site in stage.sites}
    operands = {site.path: site.role for stage in stages for site in stage.operands}
    if set(layers) != set(bundle.layers):
        raise _unfit(f"{min(set(layers) ^ set(bundle.layers))} is quantized in one of them alone")
    if bundle.operands and {path: part.role for path, part in bundle.operands.items()} != operands:
        raise _unfit("the operands of its attention are others")
    for path, part in bundle.layers.items():
        kernel = layers[path].kernel
        found = submodule(model, path, nn.Linear if kernel is None else nn.Conv2d)
        wanted = tuple(cast(Tensor, found.weight).flatten(1).shape)  # (n, k)
        if isinstance(part, QuantizedConv) != (kernel is not None):
            raise _unfit(f"{path} is a convolution in one of them alone")
        if isinstance(part, QuantizedConv) and part.kernel != kernel:
            raise _unfit(f"{path} is another convolution: {part.kernel}, the architecture has {kernel}")
        if tuple(part.weight_q.shape) != wanted:
            raise _unfit(f"{path} has a weight of {tuple(part.weight_q.shape)}, the architecture one of {wanted}")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, tensor in bundle.leftovers.items():
        if name in shapes and tuple(tensor.shape) != shapes[name]:
            raise _unfit(f"{name} has the shape {tuple(tensor.shape)}, the architecture {shapes[name]}")


def _unfit(problem: str) -> DataError:
    return DataError(f"bundle and architecture do not fit: {problem}", fix="calibrate again")


def attention_shapes(bundle: Bundle) -> tuple[AttentionShape, ...]:
    """What a target's integer attention must cope with."""
    return _family(bundle).attention(_prepared(bundle))


def _family(bundle: Bundle) -> Family:
    family: Family = resolve("family", bundle.identity.family, FAMILIES)
    return family


def _prepared(bundle: Bundle) -> nn.Module:
    if bundle.identity.family == detectors.NAME:
        return _family(bundle).prepare(detector_of(bundle.identity.timm_name, canvas_of(bundle.identity)))
    name, args = bundle.identity.timm_name, bundle.identity.model_args
    check_size(name, args, source=SOURCE)
    model, family = architecture(name, args, source=SOURCE), _family(bundle)
    if not family.claims(model):
        raise _unfit(f"{name} is of another family than {family.name}")
    if family.input_size(model) != bundle.identity.preprocess.input_size:
        raise _unfit(
            f"its images are {bundle.identity.preprocess.input_size}, the model takes {family.input_size(model)}"
        )
    return family.prepare(model)
