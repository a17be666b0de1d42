"""How far the reference is from itself when its layers tremble: what no correct program can be asked to stay below.

Letters:  x input, y = f(x) output of the reference f, the whole model or one block;  e size of the perturbation, n normal noise
          f_e the reference with every quantized layer's and operand's input u replaced by u·(1 + e·n)
          floor = median over draws of ‖f_e(x) − y‖ / ‖y‖;  likewise of the cosine of f_e(x) and y, mean over the images

A quantizer turns a difference in the last digit into a whole step wherever a value lies on a step's edge, so two
correct implementations differ by far more than rounding (docs/backends.md, "Parity"). Noise on x alone would not do: the first
quantizer swallows it where x lies away from its edges, as 8-bit images do, and the floor would be 0. Rounding happens before
every layer, so the noise goes there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn

from erq_export.contract.floor import NoiseFloor

from ..metrics.distance import cosine, relative_l2
from .teacher import in_front

DRAWS = 5
FLOAT_E, HALF_E = 1e-6, 2.0**-11  # what stands between two layers adds up to about 1e-7 in float32, 3e-4 in float16
LARGEST_E = 1e-2


@contextmanager
def trembling(model: nn.Module, e: float, generator: torch.Generator) -> Iterator[None]:
    """The input u of every quantized layer, and operand of attention, becomes u·(1 + e·n) while this lasts."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (noisy(args[0], e, generator), *args[1:])

    with in_front(model, hook):
        yield


def noisy(u: Tensor, e: float, generator: torch.Generator) -> Tensor:
    """u (…) with every number off by a normally distributed share e of it."""
    return u * (1 + e * torch.randn(u.shape, generator=generator).to(u.device))


def floor_of(
    model: nn.Module,
    forward: Callable[[float, torch.Generator], Tensor],
    want: Tensor,
    *,
    start: float = FLOAT_E,
    draws: int = DRAWS,
    seed: int = 0,
    largest: float = LARGEST_E,
) -> NoiseFloor:
    """Median over `draws` seeded perturbations of `model`'s layers while `forward(e, generator)` runs; undisturbed it gives
    `want`.

    e grows tenfold, to at most `largest`, until the median is above 0: with too small an e no code crosses an edge and the
    floor says nothing (docs/backends.md, "Parity").
    """

    def moved(e: float, i: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed + i)
        with trembling(model, e, generator):
            found = forward(e, generator)
        return relative_l2(found, want), cosine(found, want)

    e = start
    while True:
        errors, cosines = zip(*(moved(e, i) for i in range(draws)), strict=True)
        if median(errors) > 0 or 10 * e > largest * 1.001:
            return NoiseFloor(relative_l2=median(errors), cosine=median(cosines), draws=errors, perturbation=e)
        e *= 10
