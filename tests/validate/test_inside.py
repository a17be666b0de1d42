"""The error of a layer inside the quantized model is that of its output beside the float model's."""

import copy

import pytest
import torch
from tiny_vit import TINY_LAYERS, calibrated_bundle, tiny_spec, tiny_vit

from erq_export.calibrate.published.papers import PAPERS
from erq_export.contract.bundle import Bundle
from erq_export.contract.quantized import quant_linears
from erq_export.data.calibration_set import CalibrationSet
from erq_export.data.held_out import Prepared
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model
from erq_export.validate.metrics.inside import output_errors


def test_nothing_differs_from_itself(bundle: Bundle, images: CalibrationSet) -> None:
    model = reference_model(bundle)
    seen = Prepared(tensor=images.pixels, fingerprint="")
    assert set(output_errors(model, copy.deepcopy(model), seen).values()) == {0.0}


def test_a_shifted_layer_shows_where_it_is_and_behind_it(tiny: Loaded, bundle: Bundle, images: CalibrationSet) -> None:
    """ŷ = 3 y for the last layer alone: ‖2 y‖²/‖y‖² = 4; the layers before it are as they were."""
    model, seen = reference_model(bundle), Prepared(tensor=images.pixels, fingerprint="")
    before = output_errors(model, tiny.model.eval(), seen)
    last = list(quant_linears(model))[-1]
    exact = copy.deepcopy(model)
    model.get_submodule(last).register_forward_hook(lambda _m, _x, y: 3 * y)
    found = output_errors(model, exact, seen)
    assert found.pop(last) == pytest.approx(4)
    assert set(found.values()) == {0.0}
    assert all(error > 0 for error in before.values())


def test_no_hook_is_left(bundle: Bundle, images: CalibrationSet) -> None:
    model = reference_model(bundle)
    output_errors(model, copy.deepcopy(model), Prepared(tensor=images.pixels, fingerprint=""))
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.isfinite(model(images.pixels)).all()


def test_a_simulated_bundles_layers_are_measured_as_a_deployed_ones(images: CalibrationSet) -> None:
    """8 bits are close, 3 bits are not, and no layer is left out."""
    seen, means = Prepared(tensor=images.pixels, fingerprint=""), {}
    for bits in ("w8a8", "w3a3"):
        simulated = calibrated_bundle(tiny_vit(), images, tiny_spec(bits, ("reference",), **PAPERS["icml"].options))
        found = output_errors(reference_model(simulated), tiny_vit().model.eval(), seen)
        assert tuple(found) == TINY_LAYERS
        assert all(error > 0 for error in found.values())
        means[bits] = sum(found.values()) / len(found)
    assert means["w8a8"] < 0.01 < 10 * means["w8a8"] < means["w3a3"]
