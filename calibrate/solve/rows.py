"""The rows of a weight do not see each other: on a CPU a few at a time are solved, as many pieces at once as torch has
threads. A piece's arrays stay in its core's cache, and the pieces are the same however many threads there are."""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from math import ceil
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")
WORKER = "rows"  # how the threads of the pool are called

SMALLEST, LARGEST = 192, 384  # rows of a piece: fewer cost more calls than they save, more leave a core's cache


def by_rows(work: Callable[[slice], Result], weight: Tensor) -> list[Result]:
    """work(rows) of consecutive slices that cover the rows of `weight` (n, …), results in order; on a GPU one slice.

    Within a piece torch runs on one thread. The first error ends the whole: pieces not begun are dropped.
    """
    n = len(weight)
    if weight.is_cuda:
        return [work(slice(0, n))]
    size = min(max(ceil(n / 4), SMALLEST), LARGEST)
    pieces = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    if threading.current_thread().name.startswith(WORKER):  # of `at_once`, or there would be nobody left to wait for
        return [work(rows) for rows in pieces]
    return _spread(work, pieces)


def at_once(work: Callable[[Item], Result], items: Sequence[Item], like: Tensor) -> list[Result]:
    """work(item) of each item, in order; on a CPU each on one thread, as many at once as torch has; on a GPU in turn."""
    if like.is_cuda or threading.current_thread().name.startswith(WORKER):
        return [work(item) for item in items]
    return _spread(work, items)


def _spread(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    n_threads = torch.get_num_threads()
    try:
        return list(_pool(n_threads).map(work, items))
    finally:
        torch.set_num_threads(n_threads)  # a worker's number is every later thread's as well


@cache
def _pool(n: int) -> ThreadPoolExecutor:
    """Threads that stay: what they once got from the system they need not ask for again."""
    return ThreadPoolExecutor(n, thread_name_prefix=WORKER, initializer=torch.set_num_threads, initargs=(1,))


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
