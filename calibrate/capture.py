"""One stage of the model run over the calibration set in chunks, with every quantized layer's input shown to a visitor.

Nothing is kept: the visitor folds each chunk into something small. The hidden state between stages is all that is stored.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from erq_export.contract.formats.affine import Grid
from erq_export.contract.kernel import pixels
from erq_export.contract.sites import Site, Stage
from erq_export.contract.state import State

Visitor = Callable[[str, Tensor], None]
OperandVisitor = Callable[[str, Tensor, Tensor | None], None]
Rows = Callable[[Site, Tensor], Iterator[Tensor]]
Hook = Callable[[nn.Module, tuple[Tensor, ...]], Tensor | None]


def matrix_rows(site: Site, x: Tensor) -> Iterator[Tensor]:
    """What the site's weight is multiplied with, (rows, k); nothing where x is empty, as of an image without detections."""
    if x.numel():
        yield from [x.flatten(0, -2)] if site.kernel is None else site.kernel.rows(x)


def values(site: Site, x: Tensor) -> Iterator[Tensor]:
    """The site's input itself, every value once, (rows, k) or (rows, c) of a convolution."""
    if x.numel():
        yield x.flatten(0, -2) if site.kernel is None else pixels(x)


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    handles = [model.get_submodule(path).register_forward_pre_hook(hook) for path, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def walk(
    model: nn.Module,
    stage: Stage,
    hidden: Sequence[State],
    visit: Visitor,
    *,
    on_grid: Mapping[str, Grid] | None = None,
    rows: Rows = matrix_rows,
) -> list[State]:
    """Run `stage` on each chunk of hidden state; `visit(path, x)` sees every site's input x (rows, k).

    Of a convolution it sees a few rows at a time, or, with `rows=values`, its input itself, channels last (rows, c). A site
    in `on_grid` then works on its input quantized to that grid, with its weight as it is. Returns the stage's outputs, chunk
    by chunk: the next stage's hidden state.
    """
    grids = on_grid or {}

    def hook(site: Site) -> Hook:
        path = site.path

        def see(_module: nn.Module, args: tuple[Tensor, ...]) -> Tensor | None:
            for x in rows(site, args[0]):
                visit(path, x)
            return grids[path].fake_quantize(args[0]) if path in grids else None

        return see

    with _hooked(model, {site.path: hook(site) for site in stage.sites}):
        return [stage.forward(h) for h in hidden]


def unseen(_path: str, _x: Tensor) -> None:
    """The visitor of a walk that is made for its outputs alone."""


@torch.no_grad()
def walk_operands(model: nn.Module, stage: Stage, hidden: Sequence[State], visit: OperandVisitor) -> None:
    """Run `stage` likewise; `visit(path, x, beside)` sees attention's operands as they are, and beside the softmax v."""

    def hook(path: str) -> Hook:
        return lambda _module, args: visit(path, args[0], args[1] if len(args) > 1 else None)

    with _hooked(model, {operand.path: hook(operand.path) for operand in stage.operands}):
        for h in hidden:
            stage.forward(h)
