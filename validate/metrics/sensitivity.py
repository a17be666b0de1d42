"""What one layer's integers do to the outputs, layer by layer, with all others as they are.

Cost of L candidates in a model of S stages: what stands in front of a candidate's stage is computed once, so a candidate runs
the stages from its own on, on average half of them: L/2 passes, one chunk of images after the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erq_export.contract.progress import Progress
from erq_export.data.held_out import BATCH, Images

from .partly import Modules, Partly, Sums

Candidate = tuple[str, nn.Module]  # a layer's path, and what takes its place


@dataclass(frozen=True)
class Chunks:
    """Images as models are compared on them: at most `size` at a time, on a device, decoded again at every look."""

    images: Images
    size: int
    device: torch.device

    def __len__(self) -> int:
        whole, left = divmod(len(self.images), BATCH)
        return whole * -(-BATCH // self.size) + -(-left // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.images.pixels():
            for chunk in batch.split(self.size):
                yield chunk.to(self.device)


def swapped(
    float_model: Partly,
    base: Modules,
    candidates: Sequence[Candidate],
    chunks: Chunks,
    *,
    progress: Progress,
    what: str,
) -> tuple[float, list[float]]:
    """Σ‖ŷ − y‖²/Σ‖y‖² of the outputs with `base` in place, and with each candidate in place beside it. y are the float
    model's outputs; `what` names the work in progress."""
    stage_of = {site.path: i for i, stage in enumerate(float_model.stages) for site in stage.sites}
    as_is, found = Sums(), [Sums() for _ in candidates]
    for k, pixels in enumerate(chunks):
        y, states = float_model.run(pixels, {})[-1], float_model.run(pixels, base)
        as_is.add(states[-1], y)
        for j, (path, module) in enumerate(candidates):
            progress(what, k * len(candidates) + j, len(chunks) * len(candidates))
            first = stage_of[path]
            found[j].add(float_model.run(states[first], {**base, path: module}, first=first)[-1], y)
    return as_is.relative, [sums.relative for sums in found]
