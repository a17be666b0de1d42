"""Checkpoints of elsewhere: read without executing anything, put under the model's own names, loaded strictly."""

import hashlib
import sys
from pathlib import Path

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from erq_export.contract.errors import DataError
from erq_export.models.guesses import fitting_args


def read_checkpoint(model: nn.Module, path: Path) -> str:
    """Load safetensors or a .pt state dict (read with weights_only) strictly; returns the file's sha256.

    Names of the original repositories and of older timm versions are translated (see `renamed`).
    DataError with the first differences, and with the --model-arg that would mend them where it is known.
    """
    if not path.is_file():
        raise DataError(
            f"there is no checkpoint {path}", fix="--checkpoint FILE (.safetensors, or .pt of a state dict)"
        )
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as e:
        reason = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise DataError(
            f"cannot read the checkpoint {path}: {reason}",
            fix="a safetensors file, or a .pt that holds only tensors (torch.save(model.state_dict(), FILE))",
        ) from e
    want = model.state_dict()
    state = renamed(state, model)
    wrong = [
        f"{k}: {_shape(state[k])} in the file, {_shape(want[k])} in the model"
        for k in want
        if k in state and state[k].shape != want[k].shape
    ]
    wrong += [f"{k}: missing in the file" for k in want if k not in state]
    wrong += [f"{k}: not in the model" for k in state if k not in want]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise DataError(
            f"the checkpoint {path} does not fit the model: {'; '.join(wrong[:3])}{more}",
            fix=fitting_args(state, want),
        )
    model.load_state_dict(state)
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def _shape(tensor: Tensor) -> str:
    return "×".join(str(n) for n in tensor.shape) or "a number"


def refuse_non_finite(model: nn.Module) -> None:
    """DataError naming the first weight that holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"the weight {name} holds NaN or infinity", fix="a checkpoint of a model that works")
