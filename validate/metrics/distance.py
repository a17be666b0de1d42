"""How far a result is from what it should be: relative errors, and how much of one is rounding."""

import math

from torch import Tensor
from torch.nn import functional as F

from erq_export.contract.parity import LARGEST
from erq_export.data.held_out import Images

from ..runners import Runner

ROUNDING = 1e-5  # of float32: sums of some thousand products in another order, and erf or exp by another polynomial


def relative_l2(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖ in float64; the largest float where `got` is not finite."""
    want = want.double()
    return _ratio((got.double() - want).norm().item(), want.norm().item())


def cosine(got: Tensor, want: Tensor) -> float:
    """Of the outputs (B, …), mean over the images, in float64; 0 where `got` is not finite, or zero."""
    found = F.cosine_similarity(got.double().flatten(1), want.double().flatten(1), dim=1).mean().item()
    return min(1.0, max(-1.0, found)) if math.isfinite(found) else 0.0


def relative_error(got: Runner, want: Runner, images: Images) -> float:
    """‖got − want‖ / ‖want‖ over the logits of all images, batch by batch: nothing but two sums is kept."""
    error = size = 0.0
    for pixels in images.pixels():
        y_hat, y = got.logits(pixels).double(), want.logits(pixels).double()  # (B, n) each
        error += float((y_hat - y).square().sum())
        size += float(y.square().sum())
    return _ratio(math.sqrt(error), math.sqrt(size))


def relative_max(got: Tensor, want: Tensor) -> float:
    """max|got − want| / max|want|; the largest float where `got` is not finite."""
    return _ratio((got - want).abs().max().item(), want.abs().max().item())


def _ratio(error: float, size: float) -> float:
    if not math.isfinite(error):
        return LARGEST
    return error / size if size else error
