"""The whole model against the reference, judged by the reference's own noise floor (see `floor`).

Letters:  x pixels, y = f(x) logits of the reference f

What can be asked of both as they run is that they do not differ by much more than the reference does from itself; what more can
be asked where ties are broken alike stands in `whole`.

A model of few bits may amplify one rounding to tens of per cent of its output. Three times such a floor is more than 1, the
error of outputs that are all zero, so an error below it proves nothing. What is left is the direction: the cosine must be at
least half of what trembling leaves. Zeros, and outputs of another model, have 0. Blocks and decisions then say more
(`blocks`, `decision`).
"""

import torch
from torch import Tensor, nn

from erq_export.contract.floor import NoiseFloor
from erq_export.contract.parity import ModelParity

from ..metrics.distance import ROUNDING, cosine, relative_l2
from ..runners import Runner, TorchRunner
from .floor import DRAWS, FLOAT_E, floor_of, noisy

FACTOR = 3.0  # of the floor: error / floor was about 1 and at most 1.9 in 240 batches of 2 or 4 digits, both carriers


def noise_floor(
    reference: nn.Module, pixels: Tensor, logits: Tensor, *, start: float = FLOAT_E, draws: int = DRAWS, seed: int = 0
) -> NoiseFloor:
    """Of the whole reference, whose undisturbed `logits` are given; the pixels tremble too."""
    runner = _runner(reference)

    def forward(e: float, generator: torch.Generator) -> Tensor:
        return runner.logits(noisy(pixels, e, generator))

    return floor_of(reference, forward, logits, start=start, draws=draws, seed=seed)


def check_model(
    reference: nn.Module,
    runner: Runner,
    pixels: Tensor,
    *,
    start: float = FLOAT_E,
    draws: int = DRAWS,
    factor: float = FACTOR,
    seed: int = 0,
    headless: bool = False,
) -> ModelParity:
    """Level 3 of docs/backends.md, "Parity": the runner's logits against the reference's, with the reference's own
    noise floor."""
    want, got = _runner(reference).logits(pixels), runner.logits(pixels)  # (B, n)
    floor = noise_floor(reference, pixels, want, start=start, draws=draws, seed=seed)
    return ModelParity(
        runner=runner.name,
        n_images=len(pixels),
        relative_l2=relative_l2(got, want),
        cosine=cosine(got, want),
        top1_agreement=None if headless else float((got.argmax(1) == want.argmax(1)).double().mean()),
        floor=floor,
        factor=factor,
        limit=max(ROUNDING, factor * floor.relative_l2),
        least_cosine=max(0.0, floor.cosine) / 2,
    )


def _runner(reference: nn.Module) -> TorchRunner:
    device = next((t.device for t in reference.buffers()), torch.device("cpu"))
    return TorchRunner(reference, device, name="reference")
