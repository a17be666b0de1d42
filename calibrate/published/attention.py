"""The published quantizers of attention: q, k and v like any activation, the softmax on the logarithmic grid of least error.

Letters:  P (B, h, T, T) softmax;  δ the grid's largest point;  p percentile
"""

from collections.abc import Sequence

from torch import Tensor, nn

from erq_export.contract.formats.affine import Grid
from erq_export.contract.formats.logarithmic import LogGrid, log_grid
from erq_export.contract.sites import Stage
from erq_export.contract.state import State

from ..capture import walk_operands
from ..observers import Tails, groups, pieces, range_search
from ..percentiles import INPUTS
from ..search import Search, of_tensor
from ..setting import Setting


def log_search(tails: Tails, *, bits: int) -> Search[LogGrid]:
    """One δ a percentile, δ = quantile(P, p), one for all heads (docs/method.md, "Logarithmic softmax").

    The largest value, where the published search starts, is left if every quantile is 0.
    """
    ranges = [tails.range(p) for p in tails.percentiles]
    found = [(lo[0], hi[0]) for lo, hi in ranges if bool(hi[0] > 0)] or [
        (lo[0], hi[0]) for lo, hi in [tails.range(1.0)]
    ]
    return Search(candidates=[log_grid(lo, hi, bits) for lo, hi in found], error=of_tensor)


def published_grids(
    model: nn.Module, stage: Stage, hidden: Sequence[State], setting: Setting
) -> dict[str, Grid | LogGrid]:
    """The grids of all four operands of the stage at the activations' bits, by path (docs/method.md, "What is quantized").

    Two passes over the float stage: exact percentiles from streamed tails, then the error of each candidate. q is seen
    after the logits' scale, which is folded into qkv: its grid scales with it, so its codes are the published ones.
    """
    roles = {site.path: site.role for site in stage.operands}
    n_images = sum(len(h) for h in hidden)
    tails: dict[str, Tails] = {}

    def see(path: str, x: Tensor, _beside: Tensor | None) -> None:
        values = groups(x, per_channel=False)
        if path not in tails:
            tails[path] = Tails.of(
                values.shape[1] // len(hidden[0]) * n_images, INPUTS[setting.options.input_percentiles]
            )
        tails[path].add(values)

    walk_operands(model, stage, hidden, see)
    bits = setting.bits.a
    searches: dict[str, Search[Grid] | Search[LogGrid]] = {
        path: log_search(t, bits=bits)
        if roles[path] == "softmax"
        else range_search(t, bits=bits, rules=setting.rules, per_channel=False)
        for path, t in tails.items()
    }

    def measure(path: str, x: Tensor, _beside: Tensor | None) -> None:
        for values in (x,) if roles[path] == "softmax" else pieces(x, per_channel=False):
            searches[path].add(values)

    walk_operands(model, stage, hidden, measure)
    return {path: search.best() for path, search in searches.items()}
