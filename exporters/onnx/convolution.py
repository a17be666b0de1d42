"""A convolution's marker to integers: each target's way of writing y = Ŵ ∗ x̂ + b so that its integer kernel is found.

Letters:  x (B, c, H, W) input;  s its scale, z its zero point;  q (n, c, r, s) integer weight;  s_w (n,) its scales
          s₀ a power of two ≥ max s_w, r = s_w / s₀ (n,)

    channel:  Q(s) → Clip → ConvInteger(q + 128; z, 128) → Cast → Mul(s·s_w) → Add(b)      ONNX Runtime
    scalar:   Clip → Q(s) → DQ(s) → Conv(DQ(q, s₀)) → Mul(r) → Add(b)           TensorRT
ONNX Runtime multiplies a Q/DQ convolution in floating point unless its output is quantized too, which is another function
(measured, docs/backends.md, "Convolutions"); ConvInteger says what is meant, and fills up its border with z. Its weights
are unsigned, around 128: ONNX Runtime has a fast kernel for those alone, and the sums are the same integers.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from erq_export.contract.kernel import MIDDLE
from erq_export.contract.targets import Target

from .container import Carried, carrier_of
from .graph import Editor
from .weights import WeightScales

Attributes = dict[str, tuple[int, ...]]
WINDOW = ("kernel_shape", "strides", "pads")


def window_of(marker: ir.Node) -> Attributes:
    """The attributes that marker, Conv and ConvInteger have in common."""
    return {name: tuple(marker.attributes[name].as_ints()) for name in WINDOW}


def spread(q: NDArray[Any], marker: ir.Node, target: Target) -> NDArray[Any]:
    """The marker's matrix (n, k) as the weight (n, c, r, s) that the target's file holds: int8, or uint8 around MIDDLE."""
    window = window_of(marker)["kernel_shape"]
    weight = np.ascontiguousarray(q).reshape(len(q), -1, *window)
    return (weight.astype(np.int16) + MIDDLE).astype(np.uint8) if target.weight_form == "channel" else weight


def product(
    editor: Editor, marker: ir.Node, act: Carried, weight: ir.Value, scales: WeightScales, target: Target, path: str
) -> tuple[ir.Value, ir.Value]:
    """(Ŵ ∗ x̂ in the carrier's type, the product of the node that multiplies)."""
    if target.weight_form == "channel":
        return _integers(editor, marker, act, weight, scales, path)
    carrier, shape, name = carrier_of(target), marker.outputs[0].shape, f"{path}/Conv"
    w_hat = scales.dequantized(editor, marker, weight, path, axis=0)
    y = editor.node(marker, "Conv", [act.x_hat, w_hat], name, dtype=carrier, shape=shape, **window_of(marker))
    return scales.behind(editor, marker, y, path, one_a_channel), y


def _integers(
    editor: Editor, marker: ir.Node, act: Carried, weight: ir.Value, scales: WeightScales, path: str
) -> tuple[ir.Value, ir.Value]:
    """Sums in int32. Their scale is that of an input code times that of a weight code, rounded once to float32."""
    shape, name = marker.outputs[0].shape, f"{path}/ConvInteger"
    zero = editor.constant(f"{path}.act_zero_point", np.asarray(act.zero_point, np.uint8))
    middle = editor.constant("weight_middle", np.asarray(MIDDLE, np.uint8))
    sums = editor.node(
        marker, "ConvInteger", [act.codes, weight, zero, middle], name,
        dtype=ir.DataType.INT32, shape=shape, **window_of(marker),
    )  # fmt: skip
    real = editor.node(
        marker, "Cast", [sums], f"{path}/Cast", dtype=ir.DataType.FLOAT, shape=shape, to=int(ir.DataType.FLOAT)
    )
    step = editor.constant(f"{path}.sum_scale", one_a_channel(act.scale * scales.of_rows))
    return editor.node(marker, "Mul", [real, step], f"{path}/Mul", dtype=ir.DataType.FLOAT, shape=shape), sums


def one_a_channel(values: NDArray[Any]) -> NDArray[Any]:
    """(n,) as (n, 1, 1): beside every pixel of an image."""
    return values[:, None, None]
