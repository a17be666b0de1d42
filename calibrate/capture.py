"""One stage of the model run over the calibration set in chunks, with every quantized layer's input shown to a visitor.

Nothing is kept: the visitor folds each chunk into something small. The hidden state between stages is all that is stored.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from erq_export.models.family import Site, Stage

Visitor = Callable[[str, Tensor], None]


@contextmanager
def _shown_inputs(model: nn.Module, sites: Sequence[Site], visit: Visitor) -> Iterator[None]:
    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, args: visit(path, args[0].flatten(0, -2))  # (rows, k)

    handles = [model.get_submodule(s.path).register_forward_pre_hook(hook(s.path)) for s in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def walk(model: nn.Module, stage: Stage, hidden: Sequence[Tensor], visit: Visitor) -> list[Tensor]:
    """Run `stage` on each chunk of hidden state; `visit(path, x)` sees every site's input x (rows, k).

    Returns the stage's outputs, chunk by chunk: the next stage's hidden state.
    """
    with _shown_inputs(model, stage.sites, visit):
        return [stage.forward(h) for h in hidden]
