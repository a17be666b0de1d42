"""The published files of detectors, loaded strictly: exactly the names and shapes of one detector, or an error."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.files import file_sha256
from erq_export.contract.inputs import shown
from erq_export.contract.registry import unknown
from erq_export.models.checkpoints import FLOATS
from erq_export.models.detectors.architecture import PUBLISHED
from erq_export.models.detectors.batch_norm import without_batch_norm
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.published_names import published_name, published_rows
from erq_export.models.detectors.refusals import file_of, refuse_another, refuse_foreign
from erq_export.models.state_files import read_state

MOST_SHOWN = 3  # differences
NO_WEIGHTS = re.compile(  # which of its neighbours a token's position bias is, and how many batches a BatchNorm saw
    r"backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index|roi_head\.bbox_head\..+\.bn\.num_batches_tracked"
)


def load_published(name: str, path: Path, *, canvas: tuple[int, int]) -> Detector:
    """The published detector of that name, with the weights of its file. SpecError for another name."""
    if name not in PUBLISHED:
        raise unknown("detector", name, PUBLISHED)
    detector = Detector(PUBLISHED[name].architecture, canvas)
    read_published(detector, path)
    return detector.eval().requires_grad_(False)


def read_published(detector: Detector, path: Path) -> str:
    """Load a published file strictly, BatchNorms folded; returns the file's sha256. Nothing in the file is executed.

    DataError with the first names that differ, and with what the file is where that is known; the detector is then as before.
    """
    state = read_state(path)
    refuse_foreign(state, path)
    refuse_another(state, detector.architecture, path)
    state = {name: t for name, t in state.items() if not NO_WEIGHTS.fullmatch(name)}
    _check_numbers(state, path)
    detector.load_state_dict(_ours(without_batch_norm(state, path), detector, path))
    return file_sha256(path)


def _check_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            raise DataError(
                f"the checkpoint {shown(path)}: {shown(name)} holds {tensor.dtype}, no floating point numbers",
                fix="the file as it was published",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(
                f"the checkpoint {shown(path)}: {shown(name)} holds NaN or infinity",
                fix="a checkpoint of a model that works",
            )


def _ours(state: Mapping[str, Tensor], detector: Detector, path: Path) -> dict[str, Tensor]:
    """The state dict under our names, with our rows. DataError unless exactly the detector's tensors are there."""
    found: dict[str, Tensor] = {}
    wrong, named = [], set()
    for ours, want in detector.state_dict().items():
        theirs, rows = published_name(ours, cascade=detector.architecture.cascade), published_rows(ours)
        named.add(theirs)
        shape = (want.shape[0] - rows.added, *want.shape[1:])
        if theirs not in state:
            wrong.append(f"{theirs}: missing in the file")
        elif tuple(state[theirs].shape) != shape:
            wrong.append(f"{theirs}: {_shape(state[theirs].shape)} in the file, {_shape(shape)} in the detector")
        else:
            found[ours] = rows.ours(state[theirs].float())
    wrong += [f"{shown(name)}: not in the detector" for name in state if name not in named]
    if wrong:
        more = f" (and {len(wrong) - MOST_SHOWN} more)" if len(wrong) > MOST_SHOWN else ""
        raise DataError(
            f"the checkpoint {shown(path)} does not fit the detector: {'; '.join(wrong[:MOST_SHOWN])}{more}",
            fix=file_of(detector.architecture),
        )
    return found


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape) or "a number"
