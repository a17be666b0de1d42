"""The model with its quantization sites: rebuilt from a bundle it is the fake-quant reference, under export it emits markers.

Letters:  B images;  T tokens;  k inputs, n outputs of a layer;  x̂ the input on its grid;  q integers
Every layer and operand here can be written into a graph; what only the target `reference` has stands in `simulated`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erq_export.contract.formats.affine import Grid, per_tensor_grid
from erq_export.contract.kernel import Kernel
from erq_export.contract.sites import OperandRole

MARKER_DOMAIN = "erq"
MARKER = "QuantLinear"
CONV_MARKER = "QuantConv2d"
OPERAND_MARKER = "QuantOperand"
LAYER_MARKERS = (MARKER, CONV_MARKER)
MARKERS = (*LAYER_MARKERS, OPERAND_MARKER)


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """One layer's integers and grids, all float leftovers float32.

    weight_q (n, k) int8: the weight is weight_q · weight_scale[:, None];  weight_scale (n,);  bias (n,);
    weight_qmin (n,) int16: the row's grid is weight_qmin … weight_qmin + 2^w − 1;
    act: the per-tensor grid of the input, scale and bounds of shape ().
    """

    weight_q: Tensor
    weight_scale: Tensor
    weight_qmin: Tensor
    bias: Tensor
    act: Grid
    w_bits: int
    a_bits: int

    @property
    def weight(self) -> Tensor:
        """The dequantized weight (n, k) float32."""
        return self.weight_q.float() * self.weight_scale[:, None]

    def stored(self) -> dict[str, Tensor]:
        return {
            "weight_q": self.weight_q,
            "weight_scale": self.weight_scale,
            "weight_qmin": self.weight_qmin,
            "bias": self.bias,
            "act_scale": self.act.scale,
        }

    def cpu(self) -> "QuantizedLayer":
        return replace(
            self,
            weight_q=self.weight_q.cpu(),
            weight_scale=self.weight_scale.cpu(),
            weight_qmin=self.weight_qmin.cpu(),
            bias=self.bias.cpu(),
            act=self.act.map(Tensor.cpu),
        )

    def module(self, path: str) -> nn.Module:
        return QuantLinear(path, self)


@dataclass(frozen=True, kw_only=True)
class QuantizedConv(QuantizedLayer):
    """The same of a convolution, k = c·r·s columns (`contract.kernel`)."""

    kernel: Kernel

    def module(self, path: str) -> nn.Module:
        return QuantConv2d(path, self)


@dataclass(frozen=True, kw_only=True)
class QuantizedOperand:
    """One operand of attention (q, k, v or the softmax): its per-tensor grid, scale and bounds of shape ()."""

    grid: Grid
    bits: int
    role: OperandRole

    def stored(self) -> dict[str, Tensor]:
        return self.grid.stored()

    def cpu(self) -> "QuantizedOperand":
        return replace(self, grid=self.grid.map(Tensor.cpu))

    def module(self, path: str) -> nn.Module:
        return QuantOperand(path, self)


class QuantLayer(nn.Module):
    """A layer's integers and grid as buffers: what QuantLinear and QuantConv2d have in common."""

    def __init__(self, path: str, layer: QuantizedLayer) -> None:
        super().__init__()
        self.path, self.w_bits, self.a_bits = path, layer.w_bits, layer.a_bits
        self.weight_q: Tensor
        self.weight_scale: Tensor
        self.bias: Tensor
        self.act_scale: Tensor
        self.act_qmin, self.act_qmax = layer.act.codes
        self.register_buffer("weight_q", layer.weight_q)  # (n, k) int8
        self.register_buffer("weight_scale", layer.weight_scale)  # (n,)
        self.register_buffer("bias", layer.bias)  # (n,)
        self.register_buffer("act_scale", layer.act.scale)  # ()

    @property
    def grid(self) -> Grid:
        """The input's grid, on the module's device."""
        return per_tensor_grid({"scale": self.act_scale}, self.act_qmin, self.act_qmax)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight (n, k) float32."""
        return self.weight_q.float() * self.weight_scale[:, None]

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own product of x and a matrix (n, k), without bias."""
        raise NotImplementedError

    def _marker(self, operator: str, x: Tensor, shape: Sequence[int | torch.SymInt], **more: Sequence[int]) -> Tensor:
        """One operator that carries the whole layer; each target's lowering writes its own Q/DQ for it."""
        bits = {"qmin": self.act_qmin, "qmax": self.act_qmax, "w_bits": self.w_bits, "a_bits": self.a_bits}
        return torch.onnx.ops.symbolic(
            f"{MARKER_DOMAIN}::{operator}",
            (x, self.weight_q, self.weight_scale, self.bias, self.act_scale),
            attrs={**bits, **more},
            dtype=x.dtype,
            shape=shape,
            version=1,
            metadata_props={"erq.path": self.path},
        )


class QuantLinear(QuantLayer):
    """y = Ŵ x̂ + b with x̂ = act.fake_quantize(x): float32 arithmetic on integers times scales."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return self._marker(MARKER, x, (*x.shape[:-1], self.weight_q.shape[0]))
        return F.linear(self.grid.fake_quantize(x), self.weight, self.bias)  # (…, n)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)


class QuantConv2d(QuantLayer):
    """y = Ŵ ∗ x̂ + b likewise. The border of zeros lies on every grid, as the code 0 of `Grid`, an 8-bit zero point."""

    def __init__(self, path: str, layer: QuantizedConv) -> None:
        super().__init__(path, layer)
        self.kernel = layer.kernel

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            shape = (x.shape[0], self.weight_q.shape[0], *self.kernel.size(*x.shape[-2:]))
            more = {"kernel_shape": self.kernel.window, "strides": self.kernel.stride, "pads": self.kernel.padding * 2}
            return self._marker(CONV_MARKER, x, shape, **more)
        return self.kernel.convolve(self.grid.fake_quantize(x), self.weight, self.bias)  # (B, n, H′, W′)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.kernel.convolve(x, weight, weight.new_zeros(len(weight)))


class QuantOperand(nn.Module):
    """x̂ = grid.fake_quantize(x), any shape; takes the place of an `Operand` and, like it, ignores `beside`."""

    def __init__(self, path: str, operand: QuantizedOperand) -> None:
        super().__init__()
        self.path, self.role, self.bits = path, operand.role, operand.bits
        self.scale: Tensor
        self.qmin, self.qmax = operand.grid.codes
        self.register_buffer("scale", operand.grid.scale)  # ()

    @property
    def grid(self) -> Grid:
        """The operand's grid, on the module's device."""
        return per_tensor_grid({"scale": self.scale}, self.qmin, self.qmax)

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:  # noqa: ARG002 - an Operand's signature
        if torch.onnx.is_in_onnx_export():
            return self._marker(x)
        return self.grid.fake_quantize(x)

    def _marker(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{MARKER_DOMAIN}::{OPERAND_MARKER}",
            (x, self.scale),
            attrs={"qmin": self.qmin, "qmax": self.qmax, "bits": self.bits, "role": self.role},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
            metadata_props={"erq.path": self.path},
        )


def quant_linears(model: nn.Module) -> dict[str, QuantLinear]:
    """Every quantized layer by its path, in the model's order."""
    return {m.path: m for m in model.modules() if isinstance(m, QuantLinear)}


def quant_operands(model: nn.Module) -> dict[str, QuantOperand]:
    """Every operand of attention on a grid by its path, in the model's order."""
    return {m.path: m for m in model.modules() if isinstance(m, QuantOperand)}
