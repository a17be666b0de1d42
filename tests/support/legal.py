"""What every bundle must be, whatever it was made from: integers in range, scales exact where they must be, all finite."""

import torch
from torch import Tensor

from erq_export.calibrate.setting import PATCH_BITS
from erq_export.contract.bundle import Bundle
from erq_export.contract.records import plain_of
from erq_export.contract.spec import Quantization


def assert_legal(bundle: Bundle, spec: Quantization) -> None:
    """Every integer in its designed range and container, every scale exact where a target needs it, all finite."""
    for path, layer in bundle.layers.items():
        assert (layer.w_bits, layer.a_bits) == (spec.bits.w, PATCH_BITS if path == "patch_embed.proj" else spec.bits.a)
        q, qmin = layer.weight_q.int(), layer.weight_qmin[:, None].int()
        assert bool(((q >= qmin) & (q <= qmin + 2**layer.w_bits - 1)).all()), path
        assert bool(((qmin >= -128) & (qmin <= 0) & (qmin + 2**layer.w_bits - 1 <= 127)).all()), path
        assert -(2**layer.a_bits) < float(layer.act.qmin) <= 0 <= float(layer.act.qmax), path
        assert float(layer.act.qmax - layer.act.qmin) == 2**layer.a_bits - 1, path
        assert float(layer.act.scale) > 0, path
        assert bool((layer.weight_scale > 0).all()), path
        if spec.rules.half_scales:
            assert torch.equal(layer.act.scale.half().float(), layer.act.scale), path
            exponents = range(-24, 16)
            assert any(exact_ratios(layer.weight_scale, 2.0**e) for e in exponents), path
        if layer.a_bits == 8 and not spec.rules.offset_8bit:
            assert float(layer.act.qmin) == -128, path
        for tensor in (layer.weight_scale, layer.bias, layer.act.scale):
            assert bool(torch.isfinite(tensor).all()), path
    assert all(bool(torch.isfinite(t).all()) for t in bundle.leftovers.values())
    assert all(
        0 <= v < float("inf") for row in bundle.statistics.values() for v in plain_of(row).values() if v is not None
    )


def exact_ratios(scale: Tensor, s0: float) -> bool:
    ratio = scale.double() / s0
    return float(ratio.max()) <= 1 and torch.equal(ratio.half().double(), ratio)
