"""The scales of a layer's weight as each target takes them: in front of the product, or split around it.

Letters:  s_w (n,) scales;  s₀ a power of two ≥ max s_w, r = s_w / s₀ (n,)
"channel" has s_w on the axis of the outputs; "scalar" has s₀ in front and r behind, both exact in the carrier's type
(docs/backends.md, "Weight forms").
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from erq_export.contract.errors import EngineError
from erq_export.contract.formats.affine import common_power
from erq_export.contract.targets import Target

from .container import carrier_of
from .graph import Editor

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class WeightScales:
    """of_rows: s_w;  front: s_w or s₀;  ratio: r, where there is one; both in the carrier's type."""

    of_rows: Array
    front: Array
    ratio: Array | None
    carrier: ir.DataType

    @classmethod
    def of(cls, s_w: Array, target: Target, path: str) -> "WeightScales":
        """EngineError where the target cannot hold them exactly (calibration for it prevents that)."""
        carrier = carrier_of(target)
        fp = carrier.numpy()
        if target.weight_form == "channel":
            return cls(of_rows=s_w, front=s_w.astype(fp), ratio=None, carrier=carrier)
        s0 = common_power(torch.from_numpy(np.array(s_w))).numpy()
        ratio = (s_w / s0).astype(fp)
        if not np.array_equal(ratio.astype(np.float32) * s0, s_w):
            raise EngineError(
                f"{path}: the bundle's scales are not exact in {target.carrier}, which target {target.name!r} needs",
                fix=f"calibrate for it: erq-export MODEL --to {target.name}",
            )
        return cls(of_rows=s_w, front=s0.astype(fp), ratio=ratio, carrier=carrier)

    def dequantized(self, editor: Editor, before: ir.Node, weight: ir.Value, path: str, *, axis: int) -> ir.Value:
        """The integers times what stands in front, whose outputs lie on `axis`."""
        zeros = editor.constant(f"{path}.weight_zero_point", np.zeros(self.front.shape, np.int8))
        scales = editor.constant(f"{path}.weight_scale", self.front)
        place = {"axis": axis} if self.front.shape else {}
        return editor.node(
            before, "DequantizeLinear", [weight, scales, zeros], f"{path}/weight/Dequantize",
            dtype=self.carrier, shape=weight.shape, **place,
        )  # fmt: skip

    def behind(
        self, editor: Editor, before: ir.Node, y: ir.Value, path: str, shaped: Callable[[Array], Array] = np.asarray
    ) -> ir.Value:
        """The product y times what stands behind it, `shaped` to lie along its outputs."""
        if self.ratio is None:
            return y
        r = editor.constant(f"{path}.weight_ratio", shaped(self.ratio))
        return editor.node(before, "Mul", [y, r], f"{path}/Mul", dtype=self.carrier, shape=y.shape)
