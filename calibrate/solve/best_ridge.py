"""The ridge of one layer, chosen from its calibration images: the one whose solve does best on the half it has not seen.

The right λ depends on the layer, the bits and the number of rows; the paper's 1e4 stands for ImageNet ViTs and 32 images.
A candidate is judged by the whole solve, not by the ridge steps alone: rounding has its own share in what a λ is worth.
Both halves of the images count, one for the other. λ is added to *sums*, so that what is best for half the rows is so for
all of them: in the ridge's own model it is the ratio of noise to weight variance, which does not depend on their number.
"""

from collections.abc import Callable
from functools import partial

from .crossed import crossed_error, of_few_rows
from .problem import Problem, Solution

CANDIDATES = tuple(10.0**power for power in range(8))  # 1 … 1e7
FIRST = 4  # the paper's 1e4, and what a single image gets: it has no halves


def best_ridge(problem: Problem, solve_at: Callable[[float, Problem], Solution]) -> float:
    """Downhill over CANDIDATES from the paper's λ, step by step, until the next one is worse; about four solves of a few rows."""
    if problem.halves is None:
        return CANDIDATES[FIRST]
    few = of_few_rows(problem)
    errors: dict[int, float] = {}

    def error(i: int) -> float:
        if i not in errors:
            errors[i] = crossed_error(few, partial(solve_at, CANDIDATES[i]))[0]
        return errors[i]

    best = FIRST
    for step in (-1, 1):
        while 0 <= best + step < len(CANDIDATES) and error(best + step) < error(best):
            best += step
    return CANDIDATES[best]
