"""The ridge of one layer, chosen from its calibration images: the one whose solve does best on the half it has not seen.

The right λ depends on the layer, the bits and the number of rows; the paper's 1e4 stands for ImageNet ViTs and 32 images.
A candidate is judged by the whole solve, not by the ridge steps alone: rounding has its own share in what a λ is worth.
Both halves of the images count, one for the other. λ is added to *sums*, so that what is best for half the rows is so for
all of them: in the ridge's own model it is the ratio of noise to weight variance, which does not depend on their number.
A λ below the rounding of the sums is none: the system has no factor, and the next larger one is taken.
"""

import math
from collections.abc import Callable
from functools import partial

from .crossed import crossed_error, of_few_rows
from .problem import Problem, Solution
from .ridge import NotPositiveDefinite

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
            try:
                errors[i] = crossed_error(few, partial(solve_at, CANDIDATES[i]))[0]
            except NotPositiveDefinite:
                errors[i] = math.inf
        return errors[i]

    best = FIRST
    for step in (-1, 1):
        while 0 <= best + step < len(CANDIDATES) and error(best + step) < error(best):
            best += step
    return CANDIDATES[best]


def solved_from(λ: float, problem: Problem, solve_at: Callable[[float, Problem], Solution]) -> Solution:
    """At λ, or at the least larger candidate that all rows have a factor for."""
    for candidate in (candidate for candidate in CANDIDATES[:-1] if candidate >= λ):
        try:
            return solve_at(candidate, problem)
        except NotPositiveDefinite:
            continue
    return solve_at(CANDIDATES[-1], problem)
