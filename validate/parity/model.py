"""The whole model against the reference, judged by how far the reference is from itself when its layers tremble.

Letters:  x pixels, y = f(x) logits of the reference f;  e size of the perturbation, n normal noise
          f_e the reference with the pixels and every quantized layer's and operand's input u replaced by u·(1 + e·n)
          floor = median over draws of ‖f_e(x) − y‖ / ‖y‖;  likewise of the cosine of f_e(x) and y, mean over the images

A quantizer turns a difference in the last digit into a whole step wherever a value lies on a step's edge, so two
correct implementations differ by far more than rounding (docs/backends.md, "Parity"). What can be asked is that they do
not differ by much more than the reference does from itself.

A model of few bits may amplify one rounding to tens of per cent of its output. Three times such a floor is more than 1, the
error of outputs that are all zero, so an error below it proves nothing. What is left is the direction: the cosine must be at
least half of what trembling leaves. Zeros, and outputs of another model, have 0.

Noise on the pixels alone would not do: the first layer's quantizer swallows it where pixels lie away from its edges, as
those of 8-bit images do, and the floor would be 0. Rounding happens before every layer, so the noise goes there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn

from erq_export.contract.parity import ModelParity, NoiseFloor
from erq_export.contract.quantized import quant_linears, quant_operands

from ..metrics.distance import ROUNDING, cosine, relative_l2
from ..runners import Runner, TorchRunner

FACTOR = 3.0  # of the floor: error / floor was about 1 and at most 1.9 in 240 batches of 2 or 4 digits, both carriers
DRAWS = 5
FLOAT_E, HALF_E = 1e-6, 2.0**-11  # what stands between two layers adds up to about 1e-7 in float32, 3e-4 in float16
LARGEST_E = 1e-2


@contextmanager
def _trembling(model: nn.Module, e: float, generator: torch.Generator) -> Iterator[None]:
    """The input u of every quantized layer, and operand of attention, becomes u·(1 + e·n) while this lasts."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_noisy(args[0], e, generator), *args[1:])

    quantized = (*quant_linears(model).values(), *quant_operands(model).values())
    handles = [module.register_forward_pre_hook(hook) for module in quantized]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noisy(u: Tensor, e: float, generator: torch.Generator) -> Tensor:
    return u * (1 + e * torch.randn(u.shape, generator=generator).to(u.device))


def noise_floor(
    reference: nn.Module, pixels: Tensor, logits: Tensor, *, start: float = FLOAT_E, draws: int = DRAWS, seed: int = 0
) -> NoiseFloor:
    """Median over `draws` seeded perturbations of the reference, whose undisturbed `logits` are given.

    e grows tenfold, to at most 1e-2, until the median is above 0: with too small an e no code crosses an edge and the
    floor says nothing (docs/backends.md, "Parity").
    """
    runner = _runner(reference)

    def moved(e: float, i: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed + i)
        with _trembling(reference, e, generator):
            found = runner.logits(_noisy(pixels, e, generator))
        return relative_l2(found, logits), cosine(found, logits)

    e = start
    while True:
        errors, cosines = zip(*(moved(e, i) for i in range(draws)), strict=True)
        if median(errors) > 0 or 10 * e > LARGEST_E * 1.001:
            return NoiseFloor(relative_l2=median(errors), cosine=median(cosines), draws=errors, perturbation=e)
        e *= 10


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
