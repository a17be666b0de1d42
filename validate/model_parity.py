"""The whole model against the reference, judged by how far the reference is from itself when its input trembles.

Letters:  x pixels, y = f(x) logits of the reference f;  e size of the perturbation, n normal noise
          floor = median over draws of ‖f(x·(1 + e·n)) − y‖ / ‖y‖

A quantizer turns a difference in the last digit into a whole step wherever a value lies on a step's edge, so two
correct implementations differ by far more than rounding (qdq.md, finding 8). What can be asked is that they do not
differ by much more than the reference does from itself.
"""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .distance import ROUNDING, relative_l2
from .runners import Runner, TorchRunner

FACTOR = 3.0  # of the floor: errors arise in every layer, the floor's perturbation only at the input
DRAWS = 5
FLOAT_E, HALF_E = 1e-6, 2.0**-11  # float16 rounds every value by up to 2⁻¹¹
LARGEST_E = 1e-3


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """The reference against itself: median, all draws, and the smallest e tried that changes anything."""

    relative_l2: float
    draws: tuple[float, ...]
    perturbation: float


@dataclass(frozen=True, kw_only=True)
class ModelParity:
    """Logits error of a runner on n_images, the share with the same top-1 class, and the noise floor beside it."""

    runner: str
    n_images: int
    relative_l2: float
    top1_agreement: float
    floor: NoiseFloor
    factor: float

    @property
    def limit(self) -> float:
        return max(ROUNDING, self.factor * self.floor.relative_l2)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"limit": self.limit}

    def problems(self) -> list[str]:
        if self.relative_l2 <= self.limit:
            return []
        return [
            f"{self.runner}: logits off by {self.relative_l2:.1e} (relative L2) on {self.n_images} images; "
            f"{self.limit:.1e} is allowed, {self.factor:g} times what the reference itself moves when its input "
            f"trembles by {self.floor.perturbation:.0e}"
        ]


def noise_floor(
    reference: Runner, pixels: Tensor, logits: Tensor, *, start: float = FLOAT_E, draws: int = DRAWS, seed: int = 0
) -> NoiseFloor:
    """Median over `draws` seeded perturbations. e grows tenfold, to at most 1e-3, until the median is above 0:
    with too small an e no code crosses an edge and the floor says nothing (qdq.md, trap 18)."""
    noise = [torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(draws)]
    e = start
    while True:
        errors = tuple(relative_l2(reference.logits(pixels * (1 + e * n)), logits) for n in noise)
        if median(errors) > 0 or 10 * e > LARGEST_E * 1.001:
            return NoiseFloor(relative_l2=median(errors), draws=errors, perturbation=e)
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
) -> ModelParity:
    """Level 3 of qdq.md 13: the runner's logits against the reference's, with the reference's own noise floor."""
    itself = TorchRunner(reference, next(iter(reference.buffers())).device)
    want, got = itself.logits(pixels), runner.logits(pixels)  # (B, n)
    return ModelParity(
        runner=runner.name,
        n_images=len(pixels),
        relative_l2=relative_l2(got, want),
        top1_agreement=float((got.argmax(1) == want.argmax(1)).double().mean()),
        floor=noise_floor(itself, pixels, want, start=start, draws=draws, seed=seed),
        factor=factor,
    )
