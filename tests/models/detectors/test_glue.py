"""The glue between the parts: each piece against its definition, written as a loop, or against torchvision where it is right."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published_detector import FRAMING, framed, picture, toy_detector
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from erq_export.contract.errors import SpecError
from erq_export.models.detectors.anchors import anchors
from erq_export.models.detectors.boxes import clipped, decode
from erq_export.models.detectors.detector import Detections, Parts, detect
from erq_export.models.detectors.framing import MEAN, STD, Framing
from erq_export.models.detectors.pasting import pasted
from erq_export.models.detectors.pooling import levels_of, pooled
from erq_export.models.detectors.proposals import proposals

CANVASES = ((800, 1344), (1344, 800))


def boxes_in(height: float, width: float, n: int, *, seed: int = 0) -> Tensor:
    x, y = (
        torch.rand(2, n, 2, generator=torch.Generator().manual_seed(seed))
        * torch.tensor((width, height))[:, None, None]
    )
    return torch.stack((x.amin(1), y.amin(1), x.amax(1), y.amax(1)), 1)


def sizes(canvas: tuple[int, int]) -> list[tuple[int, int]]:
    return [(math.ceil(canvas[0] / s), math.ceil(canvas[1] / s)) for s in (4, 8, 16, 32, 64)]


def test_anchors_lie_where_the_definition_puts_them() -> None:
    """Exact to a float32 rounding of at most 1344 pixels."""
    found = anchors(sizes((800, 1344)), torch.zeros(1))
    assert [len(level) for level in found] == [3 * h * w for h, w in sizes((800, 1344))]
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        width = sizes((800, 1344))[level][1]
        for i, j, r in ((0, 0, 0), (3, 5, 1), (12, 20, 2)):
            y, x, ratio = i * stride, j * stride, (0.5, 1.0, 2.0)[r]
            w, h = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
            wanted = torch.tensor((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
            assert float((found[level][(i * width + j) * 3 + r] - wanted).abs().max()) < 1e-3


def test_torchvisions_anchors_are_rounded_and_have_another_stride_in_the_last_map() -> None:
    """What the override is for: up to 0.49 pixels, and 61 instead of 64 pixels between the last map's rows."""
    theirs = AnchorGenerator(tuple((8 * s,) for s in (4, 8, 16, 32, 64)), ((0.5, 1.0, 2.0),) * 5)
    maps = [torch.zeros(1, 1, *size) for size in sizes((800, 1344))]
    other = theirs(ImageList(torch.zeros(1, 3, 800, 1344), [(800, 1344)]), maps)[0]
    apart = (torch.cat(anchors(sizes((800, 1344)), torch.zeros(1))) - other).abs()
    last = 3 * 13 * 21
    assert 0.4 < float(apart[:-last].max()) < 0.495
    assert float(apart[-last:, 1].max()) == pytest.approx(12 * (64 - 61), abs=0.5)


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0, 1.0), (0.033, 0.033, 0.067, 0.067)])
def test_offsets_move_boxes_as_torchvisions_do(scales: tuple[float, float, float, float]) -> None:
    """Which knows the inverses of the scales, and bounds only how much a box grows: here none shrinks more than that."""
    boxes = boxes_in(100, 100, 50)
    deltas = torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(1)).clamp(min=-4)
    deltas[0, 0, 2:] = 1e6
    theirs = BoxCoder((1 / scales[0], 1 / scales[1], 1 / scales[2], 1 / scales[3])).decode(deltas.flatten(1), [boxes])
    found = decode(deltas, boxes, scales)
    assert bool(torch.isfinite(found).all())
    assert float(((found - theirs).abs() / (1 + theirs.abs())).max()) < 1e-4
    one = decode(deltas[:, 2], boxes, scales)
    assert torch.equal(one, found[:, 2])


def test_a_box_shrinks_no_further_than_it_grows() -> None:
    box = torch.tensor([[10.0, 10, 26, 26]])
    small = decode(torch.tensor([[0.0, 0, -1e9, -1e9]]), box, (1, 1, 1, 1))[0]
    large = decode(torch.tensor([[0.0, 0, 1e9, 1e9]]), box, (1, 1, 1, 1))[0]
    assert float(small[2] - small[0]) == pytest.approx(16 * 16 / 1000, rel=1e-3)
    assert float(large[2] - large[0]) == pytest.approx(1000, rel=1e-3)


def test_boxes_end_where_the_picture_ends() -> None:
    found = clipped(torch.tensor([[-5.0, -5, 500, 500], [10, 20, 30, 40]]), (60, 80))
    assert found.tolist() == [[0, 0, 80, 60], [10, 20, 30, 40]]


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (5000, 3), (0, 0)]
)
def test_large_boxes_are_read_from_coarse_maps(side: float, level: int) -> None:
    assert levels_of(torch.tensor([[0, 0, side, side]], dtype=torch.float32)).tolist() == [level]


def sampled(level: Tensor, box: list[float], side: int, stride: int) -> Tensor:
    """RoIAlign by its definition: the mean over each cell of as many samples as it has pixels, read bilinearly between the
    middles of pixels; outside of the map by more than one pixel there is nothing."""
    x1, y1, x2, y2 = (v / stride - 0.5 for v in box)
    channels, height, width = level.shape
    cell_h, cell_w = (y2 - y1) / side, (x2 - x1) / side
    rows, columns = max(1, math.ceil(cell_h)), max(1, math.ceil(cell_w))
    out = torch.zeros(channels, side, side, dtype=torch.float64)
    for i in range(side):
        for j in range(side):
            for a in range(rows):
                for b in range(columns):
                    y = y1 + (i + (a + 0.5) / rows) * cell_h
                    x = x1 + (j + (b + 0.5) / columns) * cell_w
                    if not (-1 <= y <= height and -1 <= x <= width):
                        continue
                    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
                    top, left = min(int(y), height - 1), min(int(x), width - 1)
                    low, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    dy, dx = y - top, x - left
                    out[:, i, j] += (1 - dy) * ((1 - dx) * level[:, top, left] + dx * level[:, top, right])
                    out[:, i, j] += dy * ((1 - dx) * level[:, low, left] + dx * level[:, low, right])
    return out / (rows * columns)


def test_pooling_is_the_mean_over_each_cell_of_an_aligned_grid() -> None:
    """To float32's rounding of coordinates, 1e-5 of a pixel; boxes on all four maps, some beyond the border."""
    maps = [
        torch.randn(1, 2, h, w, generator=torch.Generator().manual_seed(i))
        for i, (h, w) in enumerate(sizes((480, 640)))
    ]
    boxes = torch.tensor(
        [[3.3, 5.1, 40.2, 61.9], [100.5, 20, 250.25, 160], [0, 0, 330, 290.7], [5, 7, 640, 480], [600, 440, 640, 480]]
    )
    assert levels_of(boxes).tolist() == [0, 1, 2, 3, 0]
    for side in (7, 14):
        found = pooled(maps, boxes, side)
        for box, level, got in zip(boxes, levels_of(boxes).tolist(), found, strict=True):
            wanted = sampled(maps[level][0].double(), box.tolist(), side, 4 * 2**level)
            assert float((got - wanted).abs().max()) < 1e-4
    assert pooled(maps, boxes[:0], 7).shape == (0, 2, 7, 7)


def test_torchvisions_pooling_gives_other_features() -> None:
    """What the override is for: neither aligned nor as many samples as a cell has pixels. On noise that is all of the size."""
    maps = [torch.randn(1, 8, h, w, generator=torch.Generator().manual_seed(0)) for h, w in sizes((480, 640))]
    boxes, names = boxes_in(480, 640, 300), ["0", "1", "2", "3"]
    theirs = MultiScaleRoIAlign(names, 7, 2)(dict(zip(names, maps, strict=False)), [boxes], [(480, 640)])
    ours = pooled(maps, boxes, 7)
    assert float((theirs - ours).norm() / ours.norm()) > 0.4


class OurAnchors(AnchorGenerator):
    def forward(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        return [torch.cat(anchors(sizes((160, 192)), features[0]))]


def test_proposals_are_torchvisions_where_its_anchors_are_ours(tmp_path: Path) -> None:
    """Top 1000 of a level, NMS level by level, 1000 of all: the same set, in the same order, given our anchors."""
    model, image = toy_detector(tmp_path, cascade=False), framed()
    pyramid = model.body(image.pixels)
    network = RegionProposalNetwork(
        OurAnchors(), model.body.rpn, 0.7, 0.3, 256, 0.5, {"testing": 1000}, {"testing": 1000}, 0.7
    ).eval()
    network.min_size = 0
    images = ImageList(image.pixels, [image.size])
    theirs, _ = network(images, {str(i): m for i, m in enumerate(pyramid.maps)})
    found = proposals(pyramid, image.size)
    assert len(found) == len(theirs[0])
    assert float((found - theirs[0]).abs().max()) < 1e-3


def test_masks_are_pasted_at_the_middles_of_pixels() -> None:
    """Against bilinear reading of the 28 × 28 cells, whose middles lie at (i + ½)/28 of the box, pixel by pixel."""
    masks = torch.rand(4, 28, 28, generator=torch.Generator().manual_seed(0)).double()
    boxes = torch.tensor([[3.3, 4.7, 33.1, 40.2], [-4.5, 20, 20.5, 70.9], [10, 10, 11.2, 11.9], [5, 5, 5, 30]]).double()
    for mask, box, found in zip(masks, boxes.tolist(), pasted(masks, boxes, (50, 60)), strict=True):
        wanted = np.zeros((50, 60), dtype=bool)
        cells = torch.nn.functional.pad(mask, (1, 1, 1, 1)).numpy()
        x1, y1, x2, y2 = box
        for i in range(50 if x2 > x1 else 0):
            for j in range(60):
                v, u = ((i + 0.5 - y1) / (y2 - y1) * 28 + 0.5), ((j + 0.5 - x1) / (x2 - x1) * 28 + 0.5)
                if 0 <= v < 29 and 0 <= u < 29:
                    a, b, dv, du = int(v), int(u), v - int(v), u - int(u)
                    top = (1 - du) * cells[a, b] + du * cells[a, b + 1]
                    wanted[i, j] = (1 - dv) * top + dv * ((1 - du) * cells[a + 1, b] + du * cells[a + 1, b + 1]) >= 0.5
        assert (found.numpy() == wanted).all()
        assert bool(wanted.any()) == (x2 > x1)


@pytest.mark.parametrize(
    ("given", "size"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((427, 640), (800, 1199)), ((300, 1000), (400, 1333))],
)
def test_sides_are_rounded_to_the_nearest_pixel(given: tuple[int, int], size: tuple[int, int]) -> None:
    """torchvision would round 640×480 down to 1066."""
    assert Framing().resized_size(given) == size
    assert Framing(canvases=CANVASES).canvas(size) == ((800, 1344) if given[0] < given[1] else (1344, 800))
    assert Framing().canvas(size) == tuple(-(-side // 32) * 32 for side in size)


def test_a_picture_is_normalised_whole_grey_levels_and_lies_above_left() -> None:
    grey = picture(40, 60)
    found = Framing(short=40, long=60, canvases=((64, 96),))(grey)
    assert (found.size, found.given, found.scale.tolist()) == ((40, 60), (40, 60), [1, 1, 1, 1])
    wanted = (grey.float() - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.equal(found.pixels[0, :, :40, :60], wanted)
    assert float(found.pixels[0, :, 40:].abs().max()) == float(found.pixels[0, :, :, 60:].abs().max()) == 0
    resized = FRAMING(grey)
    levels = (
        resized.pixels[0, :, : resized.size[0], : resized.size[1]] * torch.tensor(STD)[:, None, None]
        + torch.tensor(MEAN)[:, None, None]
    )
    assert float((levels - levels.round()).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("canvas", "fix"), [((800, 1333), "800×1344"), ((0, 64), "32×64"), ((-32, 64), "32×64"), ((16, 32), "32×32")]
)
def test_a_canvas_that_swin_cannot_halve_is_refused(canvas: tuple[int, int], fix: str) -> None:
    with pytest.raises(SpecError, match="multiples of 32") as caught:
        Framing(canvases=(canvas,))
    assert caught.value.fix == fix


def test_what_fits_on_no_canvas_is_refused() -> None:
    with pytest.raises(SpecError, match="800×1067 pixels fits on no canvas of 608×1024") as caught:
        Framing(canvases=((608, 1024),))(torch.zeros(3, 480, 640, dtype=torch.uint8))
    assert "800×1088" in caught.value.fix
    with pytest.raises(SpecError, match="short side of 0"):
        Framing(short=0)


@pytest.mark.parametrize("cascade", [False, True])
def test_nothing_found_is_an_answer(tmp_path: Path, cascade: bool) -> None:
    """A background that always wins: no boxes, and no mask head is asked."""
    model = toy_detector(tmp_path, cascade=cascade)
    for head in model.box:
        head.predictor.cls_score.bias[0] = 1e4
    parts = Parts(body=model.body, box=tuple(model.box), mask=())
    found = detect(parts, framed())
    assert [tuple(t.shape) for t in (found.boxes, found.labels, found.scores, found.masks)] == [
        (0, 4),
        (0,),
        (0,),
        (0, 28, 28),
    ]
    assert list(pasted(found.masks, found.boxes, (10, 10))) == []


@pytest.mark.parametrize("cascade", [False, True])
def test_detections_keep_their_promises(tmp_path: Path, cascade: bool) -> None:
    image = framed()
    found: Detections = toy_detector(tmp_path, cascade=cascade)(image)
    assert 1 <= len(found.boxes) <= 100
    assert bool((found.scores[:-1] >= found.scores[1:]).all())
    assert float(found.scores.min()) > 0.05
    assert {1, 2, 3, 4, 5} >= set(found.labels.tolist())
    height, width = image.given
    assert bool((found.boxes >= 0).all() and (found.boxes <= torch.tensor((width, height, width, height)) + 1e-3).all())
    assert 0 <= float(found.masks.min()) <= float(found.masks.max()) <= 1


def test_boxes_are_told_in_pixels_of_the_picture_as_it_was_given(tmp_path: Path) -> None:
    """Twice the picture in each direction: twice the coordinates."""
    model, image = toy_detector(tmp_path, cascade=False), framed()
    twice = replace(image, given=(2 * image.given[0], 2 * image.given[1]))
    assert torch.allclose(model(twice).boxes, 2 * model(image).boxes, rtol=1e-5)
