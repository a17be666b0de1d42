"""Checkpoints of elsewhere: read without executing anything, put under the model's own names, loaded strictly."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from erq_export.contract.errors import DataError
from erq_export.contract.files import file_sha256
from erq_export.contract.inputs import shown
from erq_export.models.guesses import fitting_args
from erq_export.models.state_files import read_state

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_checkpoint(model: nn.Module, path: Path) -> str:
    """Load safetensors or a .pt state dict (read with weights_only) strictly; returns the file's sha256.

    Names of the original repositories and of older timm versions are translated (see `renamed`).
    DataError for a file that is no state dict, or with the first differences to the model's, and with the --model-arg that
    would mend them where it is known.
    """
    state = read_state(path)
    want = model.state_dict()
    state = renamed(state, model)
    wrong = [
        f"{k}: {_shape(state[k])} in the file, {_shape(want[k])} in the model"
        for k in want
        if k in state and state[k].shape != want[k].shape
    ]
    wrong += [f"{k}: missing in the file" for k in want if k not in state]
    wrong += [f"{shown(k)}: not in the model" for k in state if k not in want]
    wrong += [
        f"{k}: {state[k].dtype} in the file, {want[k].dtype} in the model"
        for k in want
        if k in state and not _same_kind(state[k], want[k])
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise DataError(
            f"the checkpoint {shown(path)} does not fit the model: {'; '.join(wrong[:3])}{more}",
            fix=fitting_args(state, want),
        )
    model.load_state_dict(state)
    return file_sha256(path)


def renamed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state dict under the model's own names, by the filter that timm gives its pretrained files; unchanged where
    the names fit already, or where the filter does not understand them.

    The filter also resamples what has another size. That is not wanted here: a file of another model is refused.
    """
    names = set(model.state_dict())
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None or set(state) == names:
        return state
    try:
        found: dict[str, Tensor] = translate(state, model)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):  # names of something else
        return state
    own = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    read = all(tensor.untyped_storage().data_ptr() in own for tensor in found.values())
    return found if read and set(found) == names else state


def _same_kind(found: Tensor, wanted: Tensor) -> bool:
    """May the numbers be taken over? Floating point of any common width for floating point, the same integers for integers."""
    return found.dtype in FLOATS if wanted.is_floating_point() else found.dtype == wanted.dtype


def _shape(tensor: Tensor) -> str:
    return "×".join(str(n) for n in tensor.shape) or "a number"


def refuse_non_finite(model: nn.Module) -> None:
    """DataError naming the first weight that holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"the weight {name} holds NaN or infinity", fix="a checkpoint of a model that works")
