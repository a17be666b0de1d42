"""The rows of a weight do not see each other: on a CPU a few at a time are solved, as many pieces at once as torch has
threads. A piece's arrays stay in its core's cache, and the pieces are the same however many threads there are."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from math import ceil
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

SMALLEST, LARGEST = 192, 384  # rows of a piece: fewer cost more calls than they save, more leave a core's cache


def by_rows(work: Callable[[slice], Result], weight: Tensor) -> list[Result]:
    """work(rows) of consecutive slices that cover the rows of `weight` (n, …), results in order; on a GPU one slice.

    Within a piece torch runs on one thread. The first error ends the whole: pieces not begun are dropped.
    """
    n, n_threads = len(weight), torch.get_num_threads()
    if weight.is_cuda:
        return [work(slice(0, n))]
    size = min(max(ceil(n / 4), SMALLEST), LARGEST)
    pieces = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    try:
        return list(_pool(n_threads).map(work, pieces))
    finally:
        torch.set_num_threads(n_threads)  # a worker's number is every later thread's as well


@cache
def _pool(n: int) -> ThreadPoolExecutor:
    """Threads that stay: what they once got from the system they need not ask for again."""
    return ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child inherits the pool without its threads


def kernels(weight: Tensor) -> ModuleType | None:
    """The compiled descents, for a weight on a CPU; None on a GPU, or where numba cannot be imported: tensors then do
    the same, several times slower."""
    return None if weight.is_cuda else _compiled()


@cache
def _compiled() -> ModuleType | None:
    try:
        return import_module(".compiled", __package__)
    except ImportError:  # no numba for this Python or this numpy yet
        return None
