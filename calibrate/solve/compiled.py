"""The two descents of the default settings, compiled for the CPU: a row at a time, its arrays in the nearest cache.

The same arithmetic in the same order as `rounding.py` and `row_steps.py` do with tensors, which a GPU needs: no sum is
reordered, no product fused.

Letters:  as in the two modules;  all arrays float64, in C order, changed in place;  returns the sweeps of all rows together
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

Kernel = TypeVar("Kernel", bound=Callable[..., int])


def compiled(kernel: Kernel) -> Kernel:
    """At its first call, and kept for later processes where numba finds a folder it may write to."""
    try:
        return cast(Kernel, numba.njit(nogil=True, cache=True)(kernel))
    except RuntimeError:  # numba's way to say that there is none
        return cast(Kernel, numba.njit(nogil=True)(kernel))


@compiled
def first_least(gain: Any) -> int:
    """The first column of the least gain, if any is negative; else any column. Of negative float64s the least has the
    greatest bit pattern, and those of positive ones are smaller (IEEE 754): integers compare several at a time, which
    the compiler does not do with numbers that may be NaN."""
    bits = gain.view(np.uint64)
    greatest = np.uint64(0)
    for j in range(len(bits)):
        greatest = max(greatest, bits[j])
    column = 0
    while bits[column] != greatest:
        column += 1
    return column


@compiled
def flip_rows(c: Any, g: Any, diagonal: Any, M: Any, is_up: Any, limit: int) -> int:
    """rounding.flip: c, g, is_up (n, h), diagonal (h,) of M (h, h). Of equal gains the first column's counts."""
    n, h = c.shape
    gain = np.empty(h)
    n_sweeps = 0
    for i in range(n):
        ci, gi = c[i], g[i]
        for j in range(h):
            gain[j] = ci[j] * ci[j] * diagonal[j] + 2 * ci[j] * gi[j]
        for _ in range(limit):
            n_sweeps += 1
            column = first_least(gain)
            if not gain[column] < 0:
                break
            step, row = ci[column], M[column]
            ci[column] = -step
            is_up[i, column] = not is_up[i, column]
            for j in range(h):
                gi[j] += step * row[j]
                gain[j] = ci[j] * ci[j] * diagonal[j] + 2 * ci[j] * gi[j]
    return n_sweeps


@compiled
def step_rows(q: Any, g: Any, diagonal: Any, s: Any, lo: Any, hi: Any, M: Any, limit: int) -> int:
    """row_steps.refine_rows: q, g (n, k), s, lo, hi (n,), diagonal (k,) of M (k, k), not negative."""
    n, k = q.shape
    gain = np.empty(k)
    n_sweeps = 0
    for i in range(n):
        qi, gi, si, least, greatest = q[i], g[i], s[i], lo[i], hi[i]
        for j in range(k):
            answered = max(gi[j], -np.inf if qi[j] < greatest else 0.0)
            gain[j] = si * diagonal[j] - 2 * abs(min(answered, np.inf if qi[j] > least else 0.0))
        for _ in range(limit):
            n_sweeps += 1
            column = first_least(gain)
            if not gain[column] < 0:
                break
            sign, row = (-1.0 if gi[column] > 0 else 1.0), M[column]
            qi[column] += sign
            step = sign * si
            for j in range(k):
                gi[j] += step * row[j]
                answered = max(gi[j], -np.inf if qi[j] < greatest else 0.0)
                gain[j] = si * diagonal[j] - 2 * abs(min(answered, np.inf if qi[j] > least else 0.0))
    return n_sweeps
