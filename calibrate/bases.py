"""Which streams and values are rotated: those whose readers are foretold to lose less there.

Letters:  x (N, k) inputs of a Linear W (n, k);  s (k,) step of each channel's grid;  r = s/s̃, s̃ the mean step;  a, w bits
Foretold  error of the layer's output if roundings do not correlate, each step spread evenly:
            inputs    Σ s_k² ‖w_k‖² / 12                   s = (max x − min x)/(2^a − 1) a channel, r folded where it can be
            weights   Σ t_j²/12 · Σ_k var(x_k/r_k)         t = (max W' − min W')/(2^w − 1) a row of W' = W r
A basis is taken where the geometric mean of error behind to error before, over all its readers, is below `GAIN`. The solver then
takes back a part of either error; which of two bases is the better one it hardly changes (docs/beyond-the-paper.md).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erq_export.contract.sites import Site, Stream
from erq_export.contract.state import State
from erq_export.models.family import run
from erq_export.models.loading import Loaded

from .linears import linear_of
from .rotation import Values, rotation, side_by_side, streams_of, values_of
from .setting import Setting

GAIN = 0.95  # a basis that promises less is not worth being another than the float model's


@dataclass
class Spread:
    """Of each channel of x, over all chunks: the least and the largest value, and sums for the variance."""

    least: Tensor = field(default_factory=lambda: torch.tensor(math.inf))
    largest: Tensor = field(default_factory=lambda: torch.tensor(-math.inf))
    total: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    squares: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    n: int = 0

    def add(self, x: Tensor) -> None:
        """x (rows, k)"""
        x = x.cpu().double()
        low, high = x.aminmax(dim=0)
        self.least, self.largest = torch.minimum(self.least, low), torch.maximum(self.largest, high)
        self.total, self.squares, self.n = self.total + x.sum(0), self.squares + x.square().sum(0), self.n + len(x)

    @property
    def variance(self) -> Tensor:
        """(k,)"""
        return (self.squares / self.n - (self.total / self.n).square()).clamp(min=0)

    def foretold(self, W: Tensor, *, a: int, w: int, folded: bool) -> float:
        """The layer's error of this input and W (n, k)."""
        s = (self.largest - self.least) / (2**a - 1)
        if not folded:
            s = torch.full_like(s, float(self.largest.max() - self.least.min()) / (2**a - 1))
        inputs = float((s.square() * W.square().sum(0)).sum()) / 12
        r = (s / s.mean()).clamp(min=1e-9)
        low, high = (W * r).aminmax(dim=1)
        t = (high - low) / (2**w - 1)
        return inputs + float(t.square().sum()) / 12 * float((self.variance / r.square()).sum())


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A Linear that reads a stream or values: its input as it is and rotated, its weight as it is and rotated."""

    site: Site
    plain: tuple[Spread, Tensor]
    turned: tuple[Spread, Tensor]

    def log_ratio(self, setting: Setting) -> float:
        """log of the error foretold behind the rotation, over that before; 0 where there is no error."""
        a, w, folded = setting.act_bits(self.site), setting.weight_bits(self.site), setting.folds(self.site)
        before, behind = (spread.foretold(W, a=a, w=w, folded=folded) for spread, W in (self.plain, self.turned))
        return math.log(behind / before) if before > 0 and behind > 0 else 0.0


@torch.no_grad()
def better_bases(loaded: Loaded, images: State, setting: Setting) -> tuple[str, ...]:
    """Names of the streams and values to rotate; `images`: one chunk of those to calibrate on.

    A stream has many readers, so the base of the bits decides: a layer with bits of its own is solved in the basis of the
    others, and settings of one base have layers that can stand beside each other.
    """
    setting = replace(setting, bits=setting.bits.base)
    wanted = setting.options.rotated
    if wanted == "none":
        return ()
    streams, values = streams_of(loaded), values_of(loaded)
    if wanted == "all":
        return (*streams, *values)
    sites = {site.path: site for stage in loaded.stages for site in stage.sites}
    readers: dict[str, list[Reader]] = {}
    with _watched(loaded.model) as watch:
        for name, stream in streams.items():
            readers[name] = _of_stream(loaded.model, stream, sites, watch)
        for name, own in values.items():
            readers[name] = [_of_values(loaded.model, own, sites, watch)]
        run(loaded.stages, images)
    gains = {name: math.exp(fmean(reader.log_ratio(setting) for reader in own)) for name, own in readers.items()}
    return tuple(name for name, gain in gains.items() if gain < GAIN)


Watch = Callable[[str, Callable[[Tensor, Tensor], None]], None]


@contextmanager
def _watched(model: nn.Module) -> Iterator[Watch]:
    """watch(path, see): see(input, output) of a module whenever it runs, in rows."""
    handles = []

    def watch(path: str, see: Callable[[Tensor, Tensor], None]) -> None:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            see(args[0].flatten(0, -2), out.flatten(0, -2))

        handles.append(model.get_submodule(path).register_forward_hook(hook))

    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _of_stream(model: nn.Module, stream: Stream, sites: dict[str, Site], watch: Watch) -> list[Reader]:
    Q = rotation(stream.width).float().to(next(model.parameters()).device)
    readers = []
    for path, linears in stream.read.items():
        norm = cast(nn.LayerNorm, model.get_submodule(path))
        plain, turned = Spread(), Spread()

        def see(
            x: Tensor, y: Tensor, norm: nn.LayerNorm = norm, plain: Spread = plain, turned: Spread = turned
        ) -> None:
            plain.add(y)
            turned.add(side_by_side(F.layer_norm(x, norm.normalized_shape, eps=norm.eps), Q))

        watch(path, see)
        for name in linears:
            W = linear_of(model, name).weight.cpu().double()
            W_turned = side_by_side(W * norm.weight.cpu().double(), rotation(stream.width))
            readers.append(Reader(site=sites[name], plain=(plain, W), turned=(turned, W_turned)))
    return readers


def _of_values(model: nn.Module, values: Values, sites: dict[str, Site], watch: Watch) -> Reader:
    W = linear_of(model, values.proj).weight.cpu().double()
    R, plain, turned = values.R.float().to(next(model.parameters()).device), Spread(), Spread()

    def see(x: Tensor, _y: Tensor) -> None:
        plain.add(x)
        turned.add(x @ R.T)

    watch(values.proj, see)
    return Reader(site=sites[values.proj], plain=(plain, W), turned=(turned, W @ values.R.T))
