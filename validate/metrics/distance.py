"""How far a result is from what it should be: relative errors, and how much of one is rounding."""

import math

from torch import Tensor

ROUNDING = 1e-5  # of float32: sums of some thousand products in another order, and erf or exp by another polynomial


def relative_l2(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖ in float64; infinite where `got` is not finite."""
    want = want.double()
    return _ratio((got.double() - want).norm().item(), want.norm().item())


def relative_max(got: Tensor, want: Tensor) -> float:
    """max|got − want| / max|want|; infinite where `got` is not finite."""
    return _ratio((got - want).abs().max().item(), want.abs().max().item())


def _ratio(error: float, size: float) -> float:
    if not math.isfinite(error):
        return math.inf
    return error / size if size else error
