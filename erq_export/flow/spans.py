"""What runners decided, as files: of all images, and of the first thousands while the rest is being looked at."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from erq_export.flow.store.checkpoints import Checkpoints
from erq_export.validate.metrics.decisions import Decisions


def save_decisions(found: Decisions, path: Path) -> None:
    """Classes and outputs, without labels."""
    save_file({"top": found.top, "outputs": found.outputs, "n_classes": torch.tensor(found.n_classes)}, path)


def load_decisions(path: Path) -> Decisions:
    """As they were saved."""
    tensors = load_file(path)
    n_classes = int(tensors["n_classes"])
    return Decisions(top=tensors["top"], outputs=tensors["outputs"], labels=None, n_classes=n_classes)


@dataclass(frozen=True)
class KeptSpans:
    """Spans that survive a kill: the next run goes on behind the last one."""

    checkpoints: Checkpoints

    def read(self, first: int) -> Decisions | None:
        path = self.checkpoints.read(_name(first))
        return None if path is None else load_decisions(path)

    def keep(self, first: int, found: Decisions) -> None:
        self.checkpoints.save(_name(first), lambda path: save_decisions(found, path))


def _name(first: int) -> str:
    return f"span-{first}.safetensors"
