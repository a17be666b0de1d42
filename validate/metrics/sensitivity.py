"""What one layer's integers do to the outputs, layer by layer, with all others as they are.

Cost of L candidates in a model of S stages: what stands in front of a candidate's stage is computed once, so a candidate runs
the stages from its own on, on average half of them: L/2 passes, one chunk of images after the other.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from erq_export.contract.progress import Progress

from .partly import Modules, Partly, Sums

Candidate = tuple[str, nn.Module]  # a layer's path, and what takes its place


def swapped(
    float_model: Partly,
    base: Modules,
    candidates: Sequence[Candidate],
    batches: Sequence[Tensor],
    *,
    progress: Progress,
    what: str,
) -> tuple[float, list[float]]:
    """Σ‖ŷ − y‖²/Σ‖y‖² of the outputs with `base` in place, and with each candidate in place beside it. y are the float
    model's outputs; `what` names the work in progress."""
    stage_of = {site.path: i for i, stage in enumerate(float_model.stages) for site in stage.sites}
    as_is, found = Sums(), [Sums() for _ in candidates]
    for k, pixels in enumerate(batches):
        y, states = float_model.run(pixels, {})[-1], float_model.run(pixels, base)
        as_is.add(states[-1], y)
        for j, (path, module) in enumerate(candidates):
            progress(what, k * len(candidates) + j, len(batches) * len(candidates))
            first = stage_of[path]
            found[j].add(float_model.run(states[first], {**base, path: module}, first=first)[-1], y)
    return as_is.relative, [sums.relative for sums in found]


def chunks_of(batches: Iterable[Tensor], size: int) -> list[Tensor]:
    """The same images in chunks of at most `size`."""
    return [chunk for batch in batches for chunk in batch.split(size)]
