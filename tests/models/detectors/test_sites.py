"""What of a detector is quantized: as many layers as the original has, and a pyramid's convolutions on all of its levels."""

import copy
from pathlib import Path

import pytest
import torch
from published_detector import toy_detector
from tiny_vit import tiny_spec
from torch import Tensor, nn

from erq_export.calibrate.known_ranges import KnownRanges
from erq_export.calibrate.layer import layer_problem
from erq_export.calibrate.ranges import input_grids
from erq_export.calibrate.scheme import deployed_layer
from erq_export.calibrate.setting import Setting
from erq_export.calibrate.states import stage_moments
from erq_export.contract.part import install
from erq_export.contract.sites import Stage
from erq_export.models.detectors.architecture import PUBLISHED
from erq_export.models.detectors.body import Body, prepare
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.sites import body_sites, module_sites

CANVAS = (96, 128)
LEVELS = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_there_are_as_many_as_in_the_original(name: str) -> None:
    """Counts of the original with mmdet (detection.md 3.1), whose patch embedding is a convolution: a Linear when prepared."""
    convolutions = {"mask_rcnn": 17, "cascade_mask_rcnn": 39}[name.rpartition("_swin")[0]]
    linears = {"mask_rcnn": 51 + 4, "cascade_mask_rcnn": 51 + 9}[name.rpartition("_swin")[0]] + 48 * name.endswith("_s")
    with torch.device("meta"):
        detector = Detector(PUBLISHED[name].architecture, (64, 64))
    whole = module_sites(detector)
    assert sum(site.kernel is not None for site in whole) == convolutions
    assert sum(site.kernel is None for site in whole) == linears


@pytest.mark.parametrize("cascade", [False, True])
def test_every_layer_of_every_part_is_one(tmp_path: Path, cascade: bool) -> None:
    detector = toy_detector(tmp_path, cascade=cascade)
    detector.body = prepare(detector.body)
    for name, part in detector.parts().items():
        sites = body_sites(part) if isinstance(part, Body) else module_sites(part)
        layers = [path for path, module in part.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert sorted(site.path for site in sites) == sorted(layers), name


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Body:
    body = prepare(toy_detector(tmp_path_factory.mktemp("toy"), cascade=False).body)
    body.set_canvas(CANVAS)
    return body


def pyramid_of(body: Body) -> Stage:
    sites = tuple(site for site in body_sites(body) if site.path.startswith(("fpn", "rpn")))
    return Stage(
        name="pyramid", forward=lambda x: x.new_tensor([float(body(x).maps[0].sum())]), sites=sites, varied=True
    )


def noise(seed: int = 0) -> Tensor:
    return torch.randn(1, 3, *CANVAS, generator=torch.Generator().manual_seed(seed))


def calibrated(body: Body, bits: str) -> Body:
    """The pyramid quantized on two images, Swin in floating point."""
    out, setting = copy.deepcopy(body), Setting.of(tiny_spec(bits))
    stage, images = pyramid_of(out), [noise(1), noise(2)]
    grids = input_grids(out, stage, images, setting, KnownRanges())
    moments, _ = stage_moments(out, stage, images, grids, setting.options)
    for site in stage.sites:
        solution = setting.solve(layer_problem(out, moments[site.path], site, setting))
        install(out, site.path, deployed_layer(solution, site, grids, setting))
    return out


def test_the_proposal_head_is_calibrated_on_all_five_levels(body: Body) -> None:
    stage, setting = pyramid_of(body), Setting.of(tiny_spec("w4a4"))
    grids = input_grids(body, stage, [noise()], setting, KnownRanges())
    moments, _ = stage_moments(body, stage, [noise()], grids, setting.options)
    assert [tuple(level.shape[2:]) for level in body(noise()).maps] == LEVELS
    for path in ("rpn.conv.0.0", "rpn.cls_logits", "rpn.bbox_pred"):
        assert moments[path].whole.n_rows == sum(high * wide for high, wide in LEVELS)
    assert moments["fpn.layer_blocks.1.0"].whole.n_rows == 12 * 16


@pytest.mark.parametrize(("bits", "limit"), [("w8a8", 0.06), ("w4a8", 0.2)])
def test_a_calibrated_pyramid_is_near_the_float_one(body: Body, bits: str, limit: float) -> None:
    """On an image that it was not calibrated on, in maps, scores and offsets of every level."""
    ours, exact = calibrated(body, bits)(noise(3)), body(noise(3))
    for kind in ("maps", "objectness", "deltas"):
        for found, wanted in zip(getattr(ours, kind), getattr(exact, kind), strict=True):
            assert 0 < float((found - wanted).norm() / wanted.norm()) < limit
