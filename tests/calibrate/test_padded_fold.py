"""A grid folded into a LayerNorm whose output is padded to whole windows: the float function stays, and padding gets the
integer of zero."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from layer_inputs import grid_of, inputs_of
from published_detector import toy_detector
from tiny_vit import tiny_spec
from torch import Tensor

from erq_export.calibrate.folding import reparameterized
from erq_export.calibrate.resume import StagePart, finish_stage, norms_of
from erq_export.calibrate.setting import Setting
from erq_export.contract.sites import Site, Stage
from erq_export.models.detectors.body import Body, prepare
from erq_export.models.detectors.sites import linear_sites

CANVASES = [(160, 192), (96, 64), (256, 320)]  # every map of all three is padded


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Body:
    return prepare(toy_detector(tmp_path_factory.mktemp("toy"), cascade=False).body)


def image_of(canvas: tuple[int, int], *, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, *canvas, generator=torch.Generator().manual_seed(seed))


def folded(body: Body, image: Tensor, change: Callable[[Site], Site] = lambda site: site) -> Body:
    """A copy with all of its LayerNorms and values folded, at 4 bits, ranges from this image."""
    out, setting = copy.deepcopy(body), Setting.of(tiny_spec("w4a4"))
    for site in map(change, linear_sites(out)):
        if setting.folds(site):
            reparameterized(out, site, grid_of(inputs_of(out, site.path, image), 4), setting)
    return out


def error(found: Body, wanted: Body, image: Tensor) -> float:
    """Largest of the maps' relative errors, ‖Δ‖ / ‖map‖."""
    with torch.no_grad():
        maps = zip(found(image).maps, wanted(image).maps, strict=True)
    return max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in maps)


@pytest.mark.parametrize("canvas", CANVASES, ids=str)
def test_the_float_function_stays_on_padded_windows(prepared: Body, canvas: tuple[int, int]) -> None:
    """To 1e-5 behind eight blocks, in float32; also for another image than the ranges come from."""
    prepared.set_canvas(canvas)
    out = folded(prepared, image_of(canvas))
    assert float(torch.stack([b.pad.shift.abs().max() for layer in out.layers for b in layer.blocks]).min()) > 0.1
    assert error(out, prepared, image_of(canvas)) < 1e-5
    assert error(out, prepared, image_of(canvas, seed=1)) < 1e-5


@pytest.mark.parametrize("canvas", CANVASES, ids=str)
def test_a_shift_in_front_of_the_padding_changes_the_function(prepared: Body, canvas: tuple[int, int]) -> None:
    """As the fold is for windows that need no padding, and as published: by more than 1 %."""
    prepared.set_canvas(canvas)
    out = folded(prepared, image_of(canvas), lambda site: replace(site, pad=None))
    assert error(out, prepared, image_of(canvas)) > 1e-2


def test_what_was_folded_on_one_canvas_holds_on_another(prepared: Body) -> None:
    """Also on one whose windows need no padding."""
    prepared.set_canvas(CANVASES[0])
    out = folded(prepared, image_of(CANVASES[0]))
    for canvas in (*CANVASES[1:], (224, 224)):
        for body in (out, prepared):
            body.set_canvas(canvas)
        assert error(out, prepared, image_of(canvas)) < 1e-5


def test_padding_has_the_integer_of_zero(prepared: Body) -> None:
    """Quantized with the one grid, a token of padding has the zero point that its channel's own grid had."""
    prepared.set_canvas(CANVASES[0])
    body, setting = copy.deepcopy(prepared), Setting.of(tiny_spec("w4a4"))
    for site in (s for s in linear_sites(body) if s.pad is not None):
        per_channel = grid_of(inputs_of(body, site.path, image_of(CANVASES[0])), 4)
        zero_points = per_channel.quantize(torch.zeros(1)) - per_channel.qmin  # (k, 1)
        grid = reparameterized(body, site, per_channel, setting)
        shift = body.get_submodule(str(site.pad)).shift
        assert torch.equal(grid.quantize(shift) - grid.qmin, zero_points[:, 0])


def test_a_stage_that_is_resumed_has_what_was_added_behind_its_padding(prepared: Body) -> None:
    prepared.set_canvas(CANVASES[1])
    out, image = folded(prepared, image_of(CANVASES[1])), image_of(CANVASES[1])
    stage = Stage(name="all", forward=lambda x: x, sites=linear_sites(out))
    norms = norms_of(out, stage)
    again = copy.deepcopy(prepared)
    finish_stage(again, StagePart(layers={}, operands={}, statistics={}, norms=norms))
    for site in stage.sites:  # the Linear layers themselves come with the stage's integers
        again.set_submodule(site.path, out.get_submodule(site.path))
    assert error(again, out, image) == 0
    assert [name for name in norms if name.endswith("pad.shift")]


def test_sites_are_all_linear_layers_of_the_body(prepared: Body) -> None:
    linears = [path for path, m in prepared.named_modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(site.path for site in linear_sites(prepared)) == sorted(linears)
