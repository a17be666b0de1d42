"""The grid of proj's input folded into the values that attention averages: the function stays, codes are those of one grid
a channel, and where weights need not sum to 1 nothing is folded."""

import copy

import pytest
import torch
from layer_inputs import grid_of, inputs_of
from tiny_swin import tiny_swin
from tiny_vit import tiny_spec, tiny_vit

from erq_export.calibrate.folding import reparameterized
from erq_export.calibrate.setting import Setting
from erq_export.contract.sites import Site
from erq_export.models.loading import Loaded

MODELS = {"vit": tiny_vit, "swin": tiny_swin}


def proj_sites(loaded: Loaded) -> list[Site]:
    return [site for stage in loaded.stages for site in stage.sites if site.role == "proj"]


@pytest.mark.parametrize("family", MODELS)
def test_the_float_function_stays_and_codes_are_those_of_one_grid_a_channel(family: str) -> None:
    """To 1e-5 of the largest output; codes to one, at a tie that float32 moves, in one of a thousand."""
    loaded = MODELS[family]()
    setting, before = Setting.of(tiny_spec("w4a4")), copy.deepcopy(loaded.model)
    pixels = torch.randn(4, *loaded.identity.preprocess.input_size, generator=torch.Generator().manual_seed(0))
    assert proj_sites(loaded)
    for site in proj_sites(loaded):
        x = inputs_of(loaded.model, site.path, pixels)
        per_channel = grid_of(x, 4)
        codes = per_channel.quantize(x.T) - per_channel.qmin
        assert float(per_channel.scale.max()) > 1.5 * float(per_channel.scale.min())  # else there is nothing to do
        grid = reparameterized(loaded.model, site, per_channel, setting)
        assert grid.scale.shape == ()
        folded = grid.quantize(inputs_of(loaded.model, site.path, pixels)) - grid.qmin
        assert float((folded.T - codes).abs().max()) <= 1
        assert float((codes != folded.T).double().mean()) < 1e-3
    with torch.no_grad():
        wanted, found = before(pixels), loaded.model(pixels)
    assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize(
    ("method", "attention", "options", "wanted"),
    [
        ("erq", "fp16", {}, True),
        ("erq", "int8", {}, False),  # codes of a softmax do not sum to 1
        ("erq", "fp16", {"fold_values": False}, False),
        ("rtn", "fp16", {}, False),
    ],
)
def test_where_values_take_the_grid(method: str, attention: str, options: dict[str, bool], wanted: bool) -> None:
    setting = Setting.of(tiny_spec("w4a4", method=method, attention=attention, **options))
    assert [setting.folds(site) for site in proj_sites(tiny_vit())] == [wanted] * 2
