"""The affine grid: the only code that rounds.

Letters:  x real values;  s > 0 scale;  q integer code;  b bits;  z zero point
A grid is the set {s·q : qmin ≤ q ≤ qmax}. The textbook form with codes c ∈ [0, 2^b − 1] and zero point z is the same
set with q = c − z, so here the zero point is always 0 and the asymmetry lives in qmin = −z, qmax = 2^b − 1 − z.
A container (int8, or uint8 with a zero point) is chosen at export; the set does not change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.contract.records import Record

SMALLEST_NORMAL_HALF = 2.0**-14
SMALLEST_HALF = 2.0**-24
LARGEST_HALF = 65504.0
SMALLEST_SCALE = 1e-12  # a dead channel has range 0; any positive scale represents it exactly


class AffineRow(Record, frozen=True, kw_only=True, tag_field="format", tag="affine"):
    """A per-tensor grid of integers, as every target can run it; its scale is a tensor."""

    qmin: int
    qmax: int

    def grid(self, tensors: Mapping[str, Tensor]) -> "Grid":
        return per_tensor_grid(tensors, self.qmin, self.qmax)


class FreeRow(Record, frozen=True, kw_only=True, tag_field="format", tag="affine-free"):
    """A per-tensor grid whose zero point need be no integer: of the target `reference` alone."""

    qmin: float
    qmax: float

    def grid(self, tensors: Mapping[str, Tensor]) -> "Grid":
        return per_tensor_grid(tensors, self.qmin, self.qmax)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Scale and integer range. The three tensors broadcast against the values they quantize: () per tensor, (n, 1) per
    row of a weight or (n, k) per entry, (k,) per channel of an activation. All float32; qmin and qmax hold integers, or
    numbers one integer apart where a zero point is none: codes then saturate between integers."""

    scale: Tensor
    qmin: Tensor
    qmax: Tensor

    def quantize(self, x: Tensor) -> Tensor:
        """q = clamp(round(x / s), qmin, qmax): integers in x's floating-point type, same shape as x.

        Rounds half to even and divides (ONNX QuantizeLinear does; multiplying by 1/s differs in about 4e-6 of codes). The
        quotient is changed in place: on a CPU, memory fresh from the system costs more than the arithmetic.
        """
        return (x / self.scale).round_().clamp_min_(self.qmin).clamp_max_(self.qmax)

    def codes_around(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(down, up, nearest): the two codes around each value, and `quantize`'s; same shape as x. For a grid that ends in
        integers, as every weight's does: then it does not matter that the range is kept before rounding."""
        steps = (x / self.scale).clamp_min_(self.qmin).clamp_max_(self.qmax)
        return torch.floor(steps), torch.ceil(steps), torch.round(steps)

    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(down, up, starts_up): the grid points around each value, and whether the nearest one is the upper; as x."""
        down, up, nearest = self.codes_around(x)
        return self.dequantize(down), self.dequantize(up), nearest == up

    def dequantize(self, q: Tensor) -> Tensor:
        """x̂ = s·q, same shape as q."""
        return q * self.scale

    def fake_quantize(self, x: Tensor) -> Tensor:
        """x̂: x moved to the nearest point of the grid, same shape and type as x."""
        return self.quantize(x).mul_(self.scale)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Grid":
        """The same change (reshape, index, device) applied to scale, qmin and qmax."""
        return Grid(scale=change(self.scale), qmin=change(self.qmin), qmax=change(self.qmax))

    def columns(self, chosen: slice) -> "Grid":
        """The grid of these columns of a weight: a row's own grid is that of all of its columns."""
        return self if self.scale.shape[1] == 1 else self.map(lambda t: t[:, chosen])

    @property
    def codes(self) -> tuple[int, int]:
        """(qmin, qmax) of a per-tensor grid that a target can run; ValueError where they are no integers."""
        row = self.free_row()
        qmin, qmax = int(row.qmin), int(row.qmax)
        if (qmin, qmax) != (row.qmin, row.qmax):
            raise ValueError(f"the codes {row.qmin} to {row.qmax} are no integers")
        return qmin, qmax

    def row(self) -> AffineRow:
        """What a bundle says of a per-tensor grid that a target can run."""
        qmin, qmax = self.codes
        return AffineRow(qmin=qmin, qmax=qmax)

    def free_row(self) -> FreeRow:
        """What a bundle says of any per-tensor grid."""
        return FreeRow(qmin=self.qmin.item(), qmax=self.qmax.item())

    def stored(self) -> dict[str, Tensor]:
        return {"scale": self.scale}


def per_tensor_grid(tensors: Mapping[str, Tensor], qmin: float, qmax: float) -> Grid:
    """The grid with the scale among `tensors` (), its bounds on the same device."""
    scale = tensors["scale"]
    return Grid(scale=scale, qmin=torch.full_like(scale, qmin), qmax=torch.full_like(scale, qmax))


def asymmetric_grid(lo: Tensor, hi: Tensor, bits: int, *, snap: Callable[[Tensor], Tensor] | None = None) -> Grid:
    """The b-bit grid that covers [lo, hi]: s = (hi − lo)/(2^b − 1), z = round(−lo/s)  (RepQ-ViT, ERQ).

    `snap` moves the scale to one that the target represents exactly, before z is computed from it.
    """
    levels = 2**bits - 1
    scale = ((hi - lo) / levels).float().clamp_min(SMALLEST_SCALE)
    scale = snap(scale) if snap else scale
    qmin = torch.round(lo.float() / scale)
    return Grid(scale=scale, qmin=qmin, qmax=qmin + levels)


def symmetric_grid(lo: Tensor, hi: Tensor, bits: int, *, snap: Callable[[Tensor], Tensor] | None = None) -> Grid:
    """The b-bit grid with codes [−2^(b−1), 2^(b−1) − 1] whose largest point is max(|lo|, |hi|)."""
    top = 2 ** (bits - 1) - 1
    scale = (torch.maximum(lo.abs(), hi.abs()) / top).float().clamp_min(SMALLEST_SCALE)
    scale = snap(scale) if snap else scale
    return Grid(scale=scale, qmin=torch.full_like(scale, -top - 1), qmax=torch.full_like(scale, top))


def snap_to_half(scale: Tensor) -> Tensor:
    """The nearest scale that float16 holds exactly, so float32 and float16 graphs share one grid. Any shape."""
    return scale.clamp(SMALLEST_NORMAL_HALF, LARGEST_HALF).half().float()


def snap_to_ratio(scale: Tensor, s0: Tensor) -> Tensor:
    """Scales s = s₀·r with s₀ a power of two common to the layer and each ratio r ≤ 1 exact in float16. Any shape.

    A graph in float16 dequantizes the whole weight with s₀ and multiplies the output by r: the raw accumulator stays
    in float16's range and both factors are exact (TensorRT-RTX applies per-channel scales one kernel too late).
    """
    return s0 * (scale / s0).half().float().clamp_min(SMALLEST_NORMAL_HALF)


def common_power(scale: Tensor) -> Tensor:
    """s₀ = 2^⌈log₂ max s⌉, at least float16's smallest number; shape ()."""
    return torch.exp2(torch.ceil(torch.log2(scale.max()))).clamp_min(SMALLEST_HALF)
