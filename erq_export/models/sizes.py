"""How much memory a model needs at least, found on torch's meta device, where nothing is allocated.

Arguments such as img_size=100000 are legal and can't be built: the system would end the process in the middle of it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from erq_export.contract.errors import MachineError, SpecError
from erq_export.contract.memory import require_memory
from erq_export.models.family import family_of
from erq_export.models.names import architecture, words

BUILT = 2  # blocks of a stage that are built to know what every block of it needs
DEEPEST = 1000  # blocks: each is calibrated for itself, and no vision transformer has a tenth of them
FIX = "smaller values for --model-arg, or a machine with more memory"


class LargestTensor(TorchDispatchMode):
    """Watches every operator: `n_bytes` is the size of the largest tensor that one of them returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_bytes: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.n_bytes = max([self.n_bytes, *(_bytes(t) for t in tensors)])
        return out


def check_size(timm_name: str, args: Mapping[str, Any], *, source: str = "--model-arg") -> None:
    """Refuse a model that this machine cannot hold: MachineError with the bytes needed and free. Counted are the float32
    weights and, for one image, the largest activation twice (attention's scores and their softmax).

    SpecError where the model cannot be built, is of no known family, or is deeper than can be calibrated.
    """
    what = f"{timm_name} with {words(dict(args), source)}" if args else timm_name
    depths = _depths(args)
    shallow = dict(args) | {k: _clipped(args[k]) for k in ("depth", "depths") if k in args}
    with torch.device("meta"):
        try:
            model = architecture(timm_name, shallow, source=source)
        except SpecError as e:
            if not _overflows(e.__cause__):
                raise
            raise _too_large(what) from e
        if empty := [path for path, p in model.named_parameters() if not p.numel()]:
            raise SpecError(f"{what} has a layer without weights: {empty[0]}", fix="correct the --model-arg")
        weights = _weights(model, depths)
        require_memory(weights, f"the weights of {what}", fix=FIX)
        activation = _largest_activation(model, what)
    require_memory(weights + 2 * activation, f"the weights of {what}, and the activations of one image", fix=FIX)
    if sum(depths) > DEEPEST:
        raise SpecError(
            f"{what} has {sum(depths)} blocks", fix=f"at most {DEEPEST}: every block is calibrated for itself"
        )


def _depths(args: Mapping[str, Any]) -> tuple[int, ...]:
    """Blocks of every stage where they were asked for."""
    asked = args.get("depths", args.get("depth", ()))
    values = tuple(asked) if isinstance(asked, tuple | list) else (asked,)
    return tuple(v for v in values if type(v) is int)


def _clipped(depth: Any) -> Any:
    if isinstance(depth, tuple | list):
        return tuple(_clipped(d) for d in depth)
    return min(depth, BUILT) if type(depth) is int else depth


def _weights(model: nn.Module, depths: tuple[int, ...]) -> float:
    """Bytes of all parameters and buffers, blocks that were left out counted like those of their stage."""
    total = float(_module_bytes(model))
    stages = [
        m for path, m in model.named_modules() if path.split(".")[-1] == "blocks" and isinstance(m, nn.Sequential)
    ]
    for stage, depth in zip(stages, depths, strict=False):
        if depth > len(stage):
            total += _module_bytes(stage) / len(stage) * (depth - len(stage))
    return total


def _largest_activation(model: nn.Module, what: str) -> int:
    family = family_of(model)
    image, largest = torch.empty(1, *family.input_size(model)), LargestTensor()
    try:
        with largest, torch.no_grad():
            family.prepare(model)(image)
    except NotImplementedError:  # an operator without a meta form: its output stays uncounted
        pass
    except RuntimeError as e:
        if _overflows(e):
            raise _too_large(what) from e
        raise SpecError(f"{what} cannot read its own input: {e}", fix="correct the --model-arg") from e
    return largest.n_bytes


def _too_large(what: str) -> MachineError:
    return MachineError(f"{what} has tensors of more than 2⁶³ bytes", fix=FIX)


def _overflows(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and "overflow" in str(error)


def _module_bytes(module: nn.Module) -> int:
    return sum(_bytes(t) for t in [*module.parameters(), *module.buffers()])


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
