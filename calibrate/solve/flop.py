"""How many floating-point operations the solver makes (its matrices' by formula, its descents' by counting), and how many a
machine could."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from . import compiled
from .wqer import halves

N_SQUARE, REPEATS = 1024, 10
SWEEP_FLOP = 5  # an entry of a sweep: its gain 2, the least gain 1, the update of its gradient 2


@contextmanager
def counted_entries() -> Iterator[list[int]]:
    """Counts the entries that the descents (flips and row steps) sweep over: a number for each of their calls."""
    counts: list[int] = []

    def counting(kernel: Callable[..., int]) -> Callable[..., int]:
        def run(first: Any, *rest: Any) -> int:
            n_sweeps = kernel(first, *rest)
            counts.append(n_sweeps * first.shape[1])
            return n_sweeps

        return run

    with ExitStack() as stack:
        for name in ("flip_rows", "step_rows"):
            stack.enter_context(patch.object(compiled, name, counting(getattr(compiled, name))))
        yield counts


def matrix_flop(n: int, k: int) -> float:
    """Floating-point operations of one layer's matrix products, factor and solves, as they are made; K = k + 1, and a
    triangular solve with r columns for m rows takes m r²:
    factor K³/3; Aqer's product 2nkK and two solves of the system, for n rows or k (aqer.py); every round of Wqer the
    gradient of its rounding 2ns², the product 2nsr and one solve nr² (ridge.py); the gradient of the row steps 2nk².
    The descents are counted apart.
    """
    K = k + 1
    flop = K**3 / 3 + 2 * n * k * K + 2 * min(n, k) * K * K + 2 * n * k * k
    for S, R in halves(K):
        s, r = S.stop - S.start, R.stop - R.start
        flop += 2 * n * s * s + 2 * n * s * r + n * r * r
    return flop


def gemm_rate() -> float:
    """Operations per second of this machine's float64 matrix product: the best of a few."""
    a, took = torch.randn(N_SQUARE, N_SQUARE, dtype=torch.float64), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - start)
    return 2 * N_SQUARE**3 / min(took)
