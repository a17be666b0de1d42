"""What one finished stage leaves: its layers, operands and LayerNorms, and the states behind it, in one file a stage.

A calibration that was stopped reads these files and goes on behind the last one, to the same bytes: every number that a
later stage depends on is in them as it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from erq_export.contract.bundle import Bundle, BundleDescription, Layer, Operand
from erq_export.contract.part import install
from erq_export.contract.records import decode, encode
from erq_export.contract.rows import LayerStatistics
from erq_export.contract.sites import Stage

from .states import States

DESCRIPTION, STATE = "description", "state."
NO_HASH = "0" * 64  # the place that keeps a checkpoint checks it


class Checkpoints(Protocol):
    """A place for named files that outlive a kill; `read` gives a file that is whole, or None."""

    def save(self, name: str, write: Callable[[Path], None]) -> bool: ...

    def read(self, name: str) -> Path | None: ...


@dataclass(frozen=True, kw_only=True)
class StagePart:
    """One stage's share of a bundle, on the device it was made on; norms: its LayerNorms' parameters, as they are now, and what
    is added behind the padding of their outputs."""

    layers: Mapping[str, Layer]
    operands: Mapping[str, Operand]
    statistics: dict[str, LayerStatistics]
    norms: dict[str, Tensor]


def norms_of(model: nn.Module, stage: Stage) -> dict[str, Tensor]:
    """The parameters of the LayerNorms that feed the stage's sites, and those of the padding behind them, by their names."""
    paths = {path for site in stage.sites for path in (site.norm, site.pad) if path is not None}
    found = {
        f"{path}.{name}": t for path in sorted(paths) for name, t in model.get_submodule(path).state_dict().items()
    }
    return {name: t.detach() for name, t in found.items()}


def finish_stage(model: nn.Module, part: StagePart) -> None:
    """Put the stage's share into the model: folded LayerNorms, quantized layers and operands in place of float ones."""
    for name, value in part.norms.items():
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        if not isinstance(module, nn.LayerNorm):
            module.register_buffer(parameter, value)
            continue
        module.elementwise_affine = True
        module.register_parameter(parameter, nn.Parameter(value, requires_grad=False))
    for path, quantized in (*part.layers.items(), *part.operands.items()):
        install(model, path, quantized)


def save_stage(checkpoints: Checkpoints, i: int, of: Bundle, part: StagePart, states: States) -> None:
    """Keep the i-th stage's share and the states behind it; `of` says which calibration it belongs to."""
    share = replace(of, layers=part.layers, operands=part.operands, leftovers=part.norms, statistics=part.statistics)
    tensors = share.tensors() | {f"{STATE}{name}": t.cpu().contiguous() for name, t in states.tensors().items()}
    words = encode(share.description(NO_HASH)).decode()
    checkpoints.save(_name(i), lambda path: save_file(tensors, path, metadata={DESCRIPTION: words}))


def load_stage(checkpoints: Checkpoints, i: int, device: torch.device) -> tuple[StagePart, States] | None:
    """What `save_stage` kept, on the device; None where nothing was."""
    path = checkpoints.read(_name(i))
    if path is None:
        return None
    with safe_open(path, framework="pt", device=str(device)) as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        words = file.metadata()[DESCRIPTION]
    own = {name: t for name, t in tensors.items() if not name.startswith(STATE)}
    share = Bundle.of(decode(BundleDescription, words.encode(), source=str(path)), own)
    states = States.from_tensors({k.removeprefix(STATE): t for k, t in tensors.items() if k.startswith(STATE)})
    part = StagePart(layers=share.layers, operands=share.operands, statistics=share.statistics, norms=share.leftovers)
    return part, states


def _name(i: int) -> str:
    return f"stage.{i:04d}"
