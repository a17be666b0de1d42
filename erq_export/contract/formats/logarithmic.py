"""The logarithmic grid of probabilities: powers of 1/√2, and the only code that rounds to them.

Letters:  p ≥ 0 values;  δ the largest point;  k code;  b bits
Points are δ·2^(−k/2) for k = 0 … 2^b − 1, and 0: one point more than b bits have, as published
(docs/method.md, "Logarithmic softmax").
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.records import Record


class LogRow(Record, frozen=True, kw_only=True, tag_field="format", tag="logarithmic"):
    """Its scale δ is a tensor."""

    bits: int

    def grid(self, tensors: Mapping[str, Tensor]) -> "LogGrid":
        return LogGrid(scale=tensors["scale"], bits=self.bits)


@dataclass(frozen=True, kw_only=True)
class LogGrid:
    """δ of shape (), float32, and the bits of a code."""

    scale: Tensor
    bits: int

    @property
    def zero_code(self) -> int:
        """The first k that is too small for a point of its own and stands for 0."""
        return int(2**self.bits)

    def quantize(self, p: Tensor) -> Tensor:
        """k = round(−2 log₂(p/δ)), from 0 (p ≥ δ saturates) to `zero_code` (all smaller ones, and p = 0): as p.

        Half a code is a ratio of 2^(1/4): rounding is to nearest in the logarithm. Half to even, like every other round.
        """
        return torch.round(self._steps(p)).clamp(0, self.zero_code)

    def dequantize(self, k: Tensor) -> Tensor:
        """δ·2^(−k/2), and 0 for `zero_code`: as k."""
        return torch.where(k < self.zero_code, self.scale * torch.exp2(-k / 2), 0)

    def fake_quantize(self, p: Tensor) -> Tensor:
        """p̂: p moved to the point that is nearest in the logarithm, same shape and type as p."""
        return self.dequantize(self.quantize(p))

    def neighbours(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(down, up, starts_up): the points around each p, as p; a larger code is a smaller point."""
        steps = self._steps(p).clamp(0, self.zero_code)
        down, up = torch.ceil(steps), torch.floor(steps)
        return self.dequantize(down), self.dequantize(up), self.quantize(p) == up

    def _steps(self, p: Tensor) -> Tensor:
        return -2 * torch.log2(p / self.scale)

    def map(self, change: Callable[[Tensor], Tensor]) -> "LogGrid":
        """The same change applied to δ."""
        return LogGrid(scale=change(self.scale), bits=self.bits)

    def free_row(self) -> LogRow:
        """What a bundle says of it."""
        return LogRow(bits=self.bits)

    def stored(self) -> dict[str, Tensor]:
        return {"scale": self.scale}


def log_grid(_lo: Tensor, hi: Tensor, bits: int) -> LogGrid:
    """The grid over [0, hi]."""
    return LogGrid(scale=hi, bits=bits)
