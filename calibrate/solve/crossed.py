"""What a solve is worth on images that it has not seen: each half of the images solved for, and judged on the other.

Letters:  W (n, K) weight with the bias as last column, W̃ the same quantized
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from ..moments import Moments
from ..wide import WideMoments
from .problem import Problem, Solution
from .rows import at_once

Halves = tuple[Moments | WideMoments, Moments | WideMoments]
ROWS = 96  # outputs that are solved: rows of a weight do not see each other, and a few tell what all would


def of_few_rows(problem: Problem, n: int = ROWS) -> Problem:
    """The problem of at most n of its outputs, evenly spread."""
    total = len(problem.weight)
    rows = torch.arange(min(n, total), device=problem.weight.device) * total // min(n, total)
    return replace(problem, weight=problem.weight[rows], bias=problem.bias[rows])


def crossed_error(problem: Problem, solve: Callable[[Problem], Solution]) -> tuple[float, float]:
    """(Σ‖W x̃₀ − W̃ x̃‖², Σ‖W x̃₀‖²) over both halves, W̃ solved on the other one. ValueError where there are no halves."""
    if problem.halves is None:
        raise ValueError("one image has no halves")

    def judged(halves: Halves) -> list[float]:
        seen, unseen = halves
        W_hat = solve(replace(problem, moments=seen, halves=None)).augmented
        return unseen.output_errors(problem.augmented, [W_hat, torch.zeros_like(W_hat)])

    first, second = at_once(judged, (problem.halves, problem.halves[::-1]), like=problem.weight)
    return first[0] + second[0], first[1] + second[1]
