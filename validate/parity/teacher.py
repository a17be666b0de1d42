"""What each quantized layer and operand of the reference gets and returns, shown while it passes by.

Letters:  x (…, k) a layer's input;  y (…, n) its output;  of an operand of attention both have one shape
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from erq_export.contract.quantized import QuantLayer, QuantOperand, quant_linears, quant_operands

Visitor = Callable[[str, Tensor, Tensor], None]


@contextmanager
def _shown(model: nn.Module, visit: Visitor) -> Iterator[None]:
    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, args, y: visit(path, args[0].cpu(), y.cpu())

    handles = [
        module.register_forward_hook(hook(path))
        for path, module in (quant_linears(model) | quant_operands(model)).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def in_front(
    model: nn.Module, hook: Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]
) -> Iterator[None]:
    """While this lasts, `hook(module, arguments)` says what every quantized layer and operand of attention gets; None: what it
    got anyway."""
    quantized = [module for module in model.modules() if isinstance(module, QuantLayer | QuantOperand)]
    handles = [module.register_forward_pre_hook(hook) for module in quantized]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def teach(reference: nn.Module, pixels: Tensor, visit: Visitor) -> Tensor:
    """One pass of the reference on its own device; `visit(path, x, y)` sees every layer and operand on the CPU.

    Returns the logits.

    Nothing is kept here: what the visitor does not keep is gone before the next layer runs.
    """
    device = next(iter(reference.buffers())).device
    with _shown(reference, visit):
        logits: Tensor = reference(pixels.to(device))
    return logits.cpu()
