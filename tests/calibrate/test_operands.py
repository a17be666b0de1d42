"""The grids of attention's operands: legal on every target, and of least error where it counts."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_swin import tiny_swin
from tiny_vit import calibrated_bundle, random_images, tiny_spec, tiny_vit

from erq_export.calibrate.operands import SOFTMAX_TOPS, softmax_grid, softmax_search
from erq_export.contract.bundle import Bundle
from erq_export.contract.quantized import quant_operands
from erq_export.contract.targets import GridRules
from erq_export.models.rebuild import reference_model

ONNX = GridRules(half_scales=False, offset_8bit=True, softmax_clip=True)
TENSORRT = GridRules(half_scales=True, offset_8bit=False, softmax_clip=False)


@pytest.mark.parametrize("bits", range(3, 8))
def test_below_8_bits_no_probability_needs_a_clip_on_tensorrt(bits: int) -> None:
    """The code of 1 is the last one, although the scale was rounded to float16."""
    grid = softmax_grid(torch.tensor(0.1), bits=bits, rules=TENSORRT)
    assert float(torch.round(1 / grid.scale)) == float(grid.qmax) == 2**bits - 1
    assert float(grid.scale.half()) == float(grid.scale)


def test_8_bits_fill_the_container() -> None:
    half = softmax_grid(torch.tensor(0.5), bits=8, rules=TENSORRT)
    assert (float(half.qmin), float(half.qmax)) == (-128, 127)
    full = softmax_grid(torch.tensor(0.5), bits=8, rules=ONNX)
    assert (float(full.qmin), float(full.qmax)) == (0, 255)
    assert float(full.scale) * 255 == pytest.approx(0.5)


@pytest.mark.parametrize("sharpness", [0.5, 4.0])
def test_the_softmax_has_the_candidate_of_least_error_in_its_output(sharpness: float) -> None:
    """Against the definition, on all values at once: streamed in two chunks, the same grid wins."""
    generator = torch.Generator().manual_seed(3)
    P = (sharpness * torch.randn(4, 2, 60, 60, generator=generator)).softmax(-1)
    V = torch.randn(4, 2, 60, 16, generator=generator)
    search = softmax_search(P.amax(), bits=8, rules=TENSORRT)
    for chunk in (slice(0, 1), slice(1, 4)):
        search.add(P[chunk], V[chunk])
    errors = [
        float(((softmax_grid(P.amax() * share, bits=8, rules=TENSORRT).fake_quantize(P) - P) @ V).double().norm())
        for share in SOFTMAX_TOPS
    ]
    best = softmax_grid(P.amax() * SOFTMAX_TOPS[errors.index(min(errors))], bits=8, rules=TENSORRT)
    assert float(search.best().scale) == float(best.scale)
    assert min(errors) < 0.9 * errors[-1]
    assert min(errors) <= errors[0]
    assert all(a > b for a, b in pairwise(SOFTMAX_TOPS))


@pytest.mark.parametrize("tiny", [tiny_vit, tiny_swin], ids=["vit", "swin"])
def test_int8_attention_is_in_the_bundle_and_comes_back(tiny: object, tmp_path: Path) -> None:
    """Four operands a block; the reference rebuilt from the file computes with them, bit for bit the same."""
    loaded = tiny()  # type: ignore[operator]
    size, n = loaded.identity.preprocess.input_size[1], len(loaded.family.attention(loaded.model))
    data = random_images(size=size)
    bundle = calibrated_bundle(loaded, data, tiny_spec(attention="int8"))  # which leaves the values alone
    assert [o.role for o in bundle.operands.values()] == ["q", "k", "v", "softmax"] * n
    bundle.save(tmp_path)
    again = reference_model(Bundle.load(tmp_path))
    assert list(quant_operands(again)) == list(bundle.operands)
    with torch.no_grad():
        logits = again(data.pixels)
        assert torch.equal(logits, reference_model(bundle)(data.pixels))
        float_attention = reference_model(calibrated_bundle(tiny(), data, tiny_spec(fold_values=False)))(data.pixels)  # type: ignore[operator]
    assert not torch.equal(logits, float_attention)
    assert float((logits - float_attention).norm() / float_attention.norm()) < 0.2


def test_float_attention_leaves_no_operand() -> None:
    assert calibrated_bundle(tiny_vit(), random_images(), tiny_spec()).operands == {}
