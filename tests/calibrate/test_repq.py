"""RepQ is round to nearest where no LayerNorm feeds a layer, and round to nearest of the folded weights where one does."""

import pytest
import torch
from layer_problem import problem, solved
from layer_rows import layer_rows
from tiny_vit import calibrated_bundle, tiny_spec, tiny_vit

from erq_export.calibrate.methods.method import options_of
from erq_export.contract.bundle import Bundle
from erq_export.data.calibration_set import CalibrationSet

SAME_SITES = ("erq", "gptq", "repq", "rtn")


@pytest.fixture(scope="module")
def bundles(images: CalibrationSet) -> dict[str, Bundle]:
    """The tiny model by every method."""
    return {m: calibrated_bundle(tiny_vit(), images, tiny_spec(method=m)) for m in SAME_SITES}


def folding() -> set[str]:
    """Layers fed by a LayerNorm or by values, which take their grid."""
    return {site.path for stage in tiny_vit().stages for site in stage.sites if site.norm or site.values}


def test_only_the_control_leaves_layer_norms_alone() -> None:
    folds = {method: options_of(method, {}).folds("qkv") for method in SAME_SITES}
    assert folds == {"erq": True, "gptq": True, "repq": True, "rtn": False}


def test_given_the_same_layer_it_is_the_control() -> None:
    repq, rtn = (solved(method, problem(layer_rows())) for method in ("repq", "rtn"))
    assert torch.equal(repq.q, rtn.q)
    assert torch.equal(repq.grid.scale, rtn.grid.scale)
    assert torch.equal(repq.bias, rtn.bias)


def test_layers_that_nothing_is_folded_for_are_the_control_s(bundles: dict[str, Bundle]) -> None:
    """Their weights to the bit. Their inputs have passed folded LayerNorms and values, equal to 1e-5 in float32."""
    repq, rtn, folded = bundles["repq"].layers, bundles["rtn"].layers, folding()
    assert {"patch_embed.proj", "head"} < set(rtn) - folded
    for path in set(rtn) - folded:
        assert torch.equal(repq[path].weight, rtn[path].weight), path
        assert torch.equal(repq[path].bias, rtn[path].bias), path
        assert torch.allclose(repq[path].act.scale, rtn[path].act.scale, rtol=1e-5), path


def test_layers_with_a_layer_norm_gain_by_it(bundles: dict[str, Bundle]) -> None:
    """LayerNorms of unequal channels, which a grid per tensor serves badly: a lower error from inputs alone."""
    repq, rtn = bundles["repq"].statistics, bundles["rtn"].statistics
    for path in folding():
        assert repq[path].error_inputs < rtn[path].error_inputs, path


@pytest.mark.parametrize("method", ["gptq", "erq"])
def test_all_folding_methods_quantize_the_same_sites_on_the_same_input_grids(
    bundles: dict[str, Bundle], method: str
) -> None:
    for path, layer in bundles["repq"].layers.items():
        other = bundles[method].layers[path]
        assert (other.w_bits, other.a_bits) == (layer.w_bits, layer.a_bits)
        for name in ("scale", "qmin", "qmax"):
            assert torch.equal(getattr(other.act, name), getattr(layer.act, name)), path


def test_gptq_has_repq_s_weight_grids_and_biases(bundles: dict[str, Bundle]) -> None:
    for path, layer in bundles["repq"].layers.items():
        other = bundles["gptq"].layers[path]
        assert torch.equal(other.weight_scale, layer.weight_scale), path
        assert torch.equal(other.weight_qmin, layer.weight_qmin), path
        assert torch.equal(other.bias, layer.bias), path


def test_the_methods_rank_as_published_on_the_objective(bundles: dict[str, Bundle]) -> None:
    """Mean relative output error of the layers on the calibration rows, which each method was made to lower."""
    mean = {
        m: sum(row.error for row in bundle.statistics.values()) / len(bundle.layers) for m, bundle in bundles.items()
    }
    assert mean["erq"] < mean["gptq"] < mean["repq"] < mean["rtn"]
