"""The published quantizers of attention: q, k and v like any activation, the softmax on the logarithmic grid of least error.

Letters:  P (B, h, T, T) softmax;  δ the grid's largest point;  p percentile
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from erq_export.contract.formats.logarithmic import LogGrid, fake_quantize_log
from erq_export.contract.quantized import QuantizedOperand
from erq_export.contract.sites import Stage

from ..capture import walk_operands
from ..observers import PERCENTILES, RangeSearch, Tails, groups
from ..setting import Setting


@dataclass
class LogSearch:
    """One δ a percentile, one for all heads; the squared error of each is summed as chunks go by."""

    candidates: list[LogGrid]
    errors: list[Tensor] = field(default_factory=list)

    @classmethod
    def from_tails(cls, tails: Tails, *, bits: int) -> "LogSearch":
        """δ = quantile(P, p). The largest value, where the published search starts, is left if every quantile is 0."""
        tops = [tails.range(p)[1][0] for p in PERCENTILES]
        positive = [top for top in tops if bool(top > 0)] or [tails.range(1.0)[1][0]]
        return cls(candidates=[LogGrid(scale=top, bits=bits) for top in positive])

    def add(self, P: Tensor) -> None:
        """The same values that the tails were made of, in any order."""
        sums = [(fake_quantize_log(P, grid) - P).double().square().sum() for grid in self.candidates]
        self.errors = [a + b for a, b in zip(self.errors, sums, strict=True)] if self.errors else sums

    def best(self) -> LogGrid:
        """The candidate of least squared error, the first on ties (docs/method.md, "Logarithmic softmax")."""
        return self.candidates[int(torch.stack(self.errors).argmin())]


def published_operands(
    model: nn.Module, stage: Stage, hidden: Sequence[Tensor], setting: Setting
) -> dict[str, QuantizedOperand]:
    """All four operands of the stage at the activations' bits, by path (docs/method.md, "What is quantized").

    Two passes over the float stage: exact percentiles from streamed tails, then the error of each candidate. q is seen
    after the logits' scale, which is folded into qkv: its grid scales with it, so its codes are the published ones.
    """
    roles = {site.path: site.role for site in stage.operands}
    n_images = sum(len(h) for h in hidden)
    tails: dict[str, Tails] = {}

    def see(path: str, x: Tensor, _beside: Tensor | None) -> None:
        values = groups(x, per_channel=False)
        if path not in tails:
            tails[path] = Tails.of(values.shape[1] // len(hidden[0]) * n_images)
        tails[path].add(values)

    walk_operands(model, stage, hidden, see)
    bits = setting.bits.a
    searches: dict[str, RangeSearch | LogSearch] = {
        path: LogSearch.from_tails(t, bits=bits)
        if roles[path] == "softmax"
        else RangeSearch.from_tails(t, bits=bits, rules=setting.rules, per_channel=False)
        for path, t in tails.items()
    }
    walk_operands(model, stage, hidden, lambda path, x, _beside: searches[path].add(x))
    return {path: QuantizedOperand(grid=searches[path].best(), bits=bits, role=role) for path, role in roles.items()}
