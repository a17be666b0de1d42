"""A quantized layer as it stands in the float model, for itself: what was folded into its neighbours is undone around it.

Letters:  x (…, k) input, y (…, n) output of the float Linear W, b;  x′ = γ x + β what the layer's grid was found for (`Map`)
          Ŵ, b̂ the layer's weight and bias;  Q its input's grid;  y′ what it gives
Values:   the last rows of a Linear of q, k and v give v′ = γ v + β where the grid of what reads them was folded into them.
So layers of several bundles of one basis fit beside each other, and beside float ones.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from erq_export.contract.quantized import QuantizedLayer
from erq_export.contract.simulated import SimulatedLayer

What = Literal["weights", "activations", "both"]


@dataclass(frozen=True, kw_only=True)
class Map:
    """x′ = scale x + shift, channel by channel: scale (k,) > 0, shift (k,)."""

    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    def undo(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class Unfolded(nn.Module):
    """Takes the place of `linear`, with its weights quantized, its inputs, or both:

    weights  Ŵ x′ + b̂;   activations  W x̂ + b with x̂′ = Q(x′);   both  Ŵ Q(x′) + b̂

    before: the map of the input;  values: that of the values, where the layer makes some.
    """

    def __init__(
        self,
        linear: nn.Linear,
        layer: QuantizedLayer | SimulatedLayer,
        what: What,
        *,
        before: Map | None = None,
        values: Map | None = None,
    ) -> None:
        super().__init__()
        self.linear, self.what, self.before, self.values = linear, what, before, values
        on = linear.weight.device
        self.weight, self.bias = layer.weight.to(on), layer.bias.to(on)
        self.grid = None if layer.act is None else layer.act.map(lambda t: t.to(on))

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.before is None else self.before(x)
        if self.what != "weights" and self.grid is not None:
            inner = self.grid.fake_quantize(inner)
        if self.what == "activations":
            y: Tensor = self.linear(inner if self.before is None else self.before.undo(inner))
            return y
        y = F.linear(inner, self.weight, self.bias)
        if self.values is not None:
            n = len(self.values.scale)
            y[..., -n:] = self.values.undo(y[..., -n:])
        return y
