"""What held-out images say of a run: every runner's decisions beside the float model's, on the same images."""

import torch

from erq_export.contract.accuracy import Accuracy, ClassDrop, Share

from .decisions import MOST, Decisions
from .shares import share

WORST = 10  # classes told of


def accuracy(exact: Decisions, reference: Decisions, graphs: dict[str, Decisions]) -> Accuracy:
    """All runners on the same images; `exact` are the float model's decisions."""
    labelled = exact.labels is not None
    return Accuracy(
        n_images=len(exact.top),
        n_compared=len(exact.outputs),
        outputs="logits" if exact.n_classes else "features",
        float_top1=share(exact.right) if labelled else None,
        float_top5=share(exact.among(MOST)) if labelled and exact.n_classes > MOST else None,
        reference=reference.judged(exact),
        graphs={name: found.judged(exact) for name, found in graphs.items()},
        as_reference=_as_reference(reference, graphs),
        worst=worst(exact, reference) if labelled else (),
    )


def _as_reference(reference: Decisions, graphs: dict[str, Decisions]) -> dict[str, Share]:
    return {name: share(found.same(reference)) for name, found in graphs.items() if found.n_classes}


def worst(exact: Decisions, reference: Decisions) -> tuple[ClassDrop, ...]:
    """The classes that lose most images from float to reference, the first index on ties; none that loses nothing."""
    if exact.labels is None:
        return ()
    n = torch.bincount(exact.labels, minlength=exact.n_classes)
    before, behind = (torch.bincount(exact.labels[d.right], minlength=len(n)) for d in (exact, reference))
    order = (before - behind).sort(descending=True, stable=True).indices[:WORST].tolist()
    return tuple(
        ClassDrop(label=i, n_images=int(n[i]), float_right=int(before[i]), reference_right=int(behind[i]))
        for i in order
        if before[i] > behind[i]
    )
