"""A LayerNorm and the Linear that it feeds."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erq_export.calibrate.reparam import Folded, fold
from erq_export.contract.formats.affine import Grid, asymmetric_grid
from erq_export.contract.targets import GridRules


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A LayerNorm with channels of very different spread and offset, the Linear behind it, and its input rows."""

    x: Tensor  # (rows, k)
    gamma: Tensor  # (k,)
    beta: Tensor  # (k,)
    weight: Tensor  # (n, k)
    bias: Tensor | None  # (n,)

    def normed(self, folded: Folded | None = None) -> Tensor:
        """The LayerNorm's output (rows, k), evaluated in float64 from the float32 parameters."""
        gamma, beta = (self.gamma, self.beta) if folded is None else (folded.gamma, folded.beta)
        return F.layer_norm(self.x.double(), self.gamma.shape, gamma.double(), beta.double())

    def per_channel(self, bits: int, *, clipped: float = 0.01) -> Grid:
        normed = self.normed().float()
        return asymmetric_grid(normed.quantile(clipped, 0), normed.quantile(1 - clipped, 0), bits)  # (k,)

    def fold(self, bits: int, rules: GridRules, *, clipped: float = 0.01) -> Folded:
        per_channel = self.per_channel(bits, clipped=clipped)
        return fold(self.gamma, self.beta, self.weight, self.bias, per_channel, bits=bits, rules=rules)


def pair(*, bias: bool = True, k: int = 48, n: int = 20, rows: int = 500) -> Pair:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Pair(
        x=normal(rows, k),
        gamma=torch.exp(normal(k)) * torch.sign(normal(k)),
        beta=2 * normal(k),
        weight=normal(n, k) / k**0.5,
        bias=normal(n) if bias else None,
    )
