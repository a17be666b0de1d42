"""The logarithmic grid of probabilities: powers of 1/√2, and the only code that rounds to them.

Letters:  p ≥ 0 values;  δ the largest point;  k code;  b bits
Points are δ·2^(−k/2) for k = 0 … 2^b − 1, and 0: one point more than b bits have, as published
(docs/method.md, "Logarithmic softmax").
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LogGrid:
    """δ of shape (), float32, and the bits of a code."""

    scale: Tensor
    bits: int

    @property
    def zero_code(self) -> int:
        """The first k that is too small for a point of its own and stands for 0."""
        return int(2**self.bits)


def quantize_log(p: Tensor, grid: LogGrid) -> Tensor:
    """k = round(−2 log₂(p/δ)), from 0 (p ≥ δ saturates) to `zero_code` (all smaller ones, and p = 0): as p.

    Half a code is a ratio of 2^(1/4): rounding is to nearest in the logarithm. Half to even, like every other round.
    """
    return torch.round(-2 * torch.log2(p / grid.scale)).clamp(0, grid.zero_code)


def dequantize_log(k: Tensor, grid: LogGrid) -> Tensor:
    """δ·2^(−k/2), and 0 for `zero_code`: as k."""
    return torch.where(k < grid.zero_code, grid.scale * torch.exp2(-k / 2), 0)


def fake_quantize_log(p: Tensor, grid: LogGrid) -> Tensor:
    """p̂: p moved to the point that is nearest in the logarithm, same shape and type as p."""
    return dequantize_log(quantize_log(p, grid), grid)
