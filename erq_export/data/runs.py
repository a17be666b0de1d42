"""Masks as COCO writes them: lengths of runs of zeros and ones in turn, column by column, beginning with zeros."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def runs(mask: NDArray[np.bool_]) -> list[int]:
    """Of a mask (H, W); the lengths sum to H · W."""
    flat = np.concatenate(([False], mask.ravel(order="F")))  # runs begin with zeros
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(np.concatenate(([0], changes, [mask.size]))).tolist()
    return lengths


def from_runs(lengths: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) again."""
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(size, order="F")
