"""Decisions over many images: the graph's beside those of the trembling reference, both against the reference's own.

Letters:  n images;  gᵢ, tᵢ: does the graph, does the trembling reference, put image i into the reference's class?

Where a model amplifies one rounding to tens of per cent of its output, a right graph and the trembling reference lose the
reference's class alike, and a right graph no more often: the trembling is at least what separates two correct programs. Images
are independent, so of those that exactly one of both keeps, the graph loses each with probability ½ at most. The one-sided
exact test of that (McNemar's) fails an honest graph with probability `LEAST_P` at most, whatever the floor is and however many
images there are; how small a difference it shows depends on their number, so the intervals stand beside it.
"""

from collections.abc import Iterable

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from erq_export.contract.decision_parity import DecisionParity
from erq_export.contract.quantized import quant_linears

from ..metrics.shares import share
from ..runners import Runner
from .floor import noisy, trembling

MOST = 512  # images: 5 points of difference show at a floor of 80 % (docs/backends.md, "Parity")


@torch.no_grad()
def check_decision(
    reference: nn.Module, runner: Runner, batches: Iterable[Tensor], *, perturbation: float, seed: int = 0
) -> DecisionParity:
    """batches of images (≤ 32, C, H, W); perturbation: that of the whole model's noise floor. ValueError without an image."""
    generator = torch.Generator().manual_seed(seed)
    device = next(iter(quant_linears(reference).values())).weight_q.device
    kept: list[Tensor] = []
    shaken: list[Tensor] = []
    for pixels in batches:
        own = reference(pixels.to(device)).argmax(1).cpu()
        with trembling(reference, perturbation, generator):
            moved = reference(noisy(pixels, perturbation, generator).to(device)).argmax(1).cpu()
        kept.append(runner.logits(pixels).argmax(1) == own)
        shaken.append(moved == own)
    return judged(torch.cat(kept), torch.cat(shaken), perturbation=perturbation)


def judged(graph: Tensor, shaken: Tensor, *, perturbation: float) -> DecisionParity:
    """Both (n,) bool, gᵢ and tᵢ of the same images."""
    lost, gained = int((shaken & ~graph).sum()), int((graph & ~shaken).sum())
    p = float(binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue) if lost + gained else 1.0
    return DecisionParity(
        n_images=len(graph),
        graph=share(graph),
        trembling=share(shaken),
        lost=lost,
        gained=gained,
        p=min(p, 1.0),
        perturbation=perturbation,
    )
