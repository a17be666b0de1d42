"""The body: windows padded and then shifted, as a loop over windows in float64 does it; prepared, folded and traced."""

import copy
import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
import timm.models.swin_transformer as timm_swin
import torch
from published_detector import CANVAS, TOY, framed, toy, toy_detector
from torch import Tensor, nn

from erq_export.models.detectors.body import Body, prepare
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.heads import BOX_SIDE, MASK_SIDE
from erq_export.models.detectors.windows import Block, CanvasAttention, shift_masks

DYNAMIC = [["item"], ["_local_scalar_dense"], ["nonzero"], ["index_put"], ["index_put_"], ["arange"], ["fill_"]]
MAPS = [(5, 6), (7, 14), (10, 12), (3, 20)]  # within a window, whole windows, padded both ways, one way only


def by_the_window(block: Block, x: Tensor) -> Tensor:
    """Attention of (H, W, C) tokens as it is defined: every token sees those of its window that lay in its region before the
    shift, and zeros where the map was filled up."""
    height, width, channels = x.shape
    n, s, attn = block.window, block.shift, block.attn
    full = x.new_zeros(height + -height % n, width + -width % n, channels)
    full[:height, :width] = x
    h, w = full.shape[:2]
    out = torch.zeros_like(full)
    heads, d = attn.num_heads, channels // attn.num_heads
    for top, left in itertools.product(range(0, h, n), range(0, w, n)):
        places = [((top + i + s) % h, (left + j + s) % w, i, j) for i in range(n) for j in range(n)]
        crossed = [(s > 0 and top + i + s >= h, s > 0 and left + j + s >= w) for _, _, i, j in places]
        tokens = torch.stack([full[y, x_] for y, x_, _, _ in places])
        q, k, v = (t.reshape(-1, heads, d) for t in attn.qkv(tokens).chunk(3, -1))
        scores = torch.einsum("qhd,khd->qkh", q, k) / d**0.5
        for a, b in itertools.product(range(n * n), range(n * n)):
            down, right = places[a][2] - places[b][2] + n - 1, places[a][3] - places[b][3] + n - 1
            scores[a, b] += attn.relative_position_bias_table[down * (2 * n - 1) + right]
            if crossed[a] != crossed[b]:
                scores[a, b] -= 100
        mixed = torch.einsum("qkh,khd->qhd", scores.softmax(1), v).flatten(1)
        for (y, x_, _, _), token in zip(places, attn.proj(mixed), strict=True):
            out[y, x_] = token
    return out[:height, :width]


def blocks_of(body: Body) -> list[Block]:
    return [m for m in body.modules() if isinstance(m, Block)]


@pytest.mark.parametrize("size", MAPS)
@torch.no_grad()
def test_blocks_are_padded_and_then_shifted(tmp_path: Path, size: tuple[int, int]) -> None:
    """In float64, to 1e-12 of the tokens' size: 49 terms a sum, each exact to 1e-16."""
    body = toy_detector(tmp_path, cascade=False).body.double()
    x = torch.randn(2, *size, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masks = shift_masks(*size, window=7, like=x)
    for block in blocks_of(body)[:2]:
        block.set_map(masks)
        wanted = torch.stack([by_the_window(block, image) for image in x])
        assert float((block._attended(x) - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())
    assert [block.shift for block in blocks_of(body)] == [0, 3] * 4  # also where a map lies within one window


def stages_of(layers: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    out = []
    for layer in layers:
        x = layer(x)
        out.append(x)
    return out


@pytest.mark.parametrize(("canvas", "whole"), [((224, 224), True), ((256, 320), False)])
@torch.no_grad()
def test_timms_own_blocks_agree_where_no_window_is_padded(tmp_path: Path, canvas: tuple[int, int], whole: bool) -> None:
    """With the same weights, always partitioned: there to float32's rounding, elsewhere off by per cents in every stage."""
    body = toy_detector(tmp_path, cascade=False).body
    shapes = {"embed_dim": TOY["dim"], "depths": TOY["depths"], "num_heads": TOY["heads"]}
    timms = timm_swin.SwinTransformer(num_classes=0, always_partition=True, strict_img_size=False, **shapes)
    timms.layers.load_state_dict(body.layers.state_dict())
    body.set_canvas(canvas)
    x = body.patch_embed(torch.randn(1, 3, *canvas, generator=torch.Generator().manual_seed(0)))
    both = zip(stages_of(timms.eval().layers, x), stages_of(body.layers, x), strict=True)
    apart = [float((theirs - ours).norm() / ours.norm()) for theirs, ours in both]
    assert max(apart) < 1e-5 if whole else min(apart) > 0.01


@torch.no_grad()
def test_the_images_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    """To 1e-6: products of another batch size add in another order."""
    body = toy_detector(tmp_path, cascade=False).body
    one, two = framed().pixels, framed(seed=2).pixels
    both = body(torch.cat((one, two)))
    for i, image in enumerate((one, two)):
        for level, wanted in zip(both.maps, body(image).maps, strict=True):
            assert float((level[i] - wanted[0]).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("canvas", [CANVAS, (64, 96), (224, 224)])
@torch.no_grad()
def test_prepared_for_calibration_the_body_computes_the_same(tmp_path: Path, canvas: tuple[int, int]) -> None:
    """To 1e-5 of each map's largest value: the scale of the scores is folded into qkv, one rounding a weight. And on another
    canvas than it was prepared on."""
    body = toy_detector(tmp_path, cascade=False).body
    prepared = prepare(copy.deepcopy(body))
    image = torch.randn(1, 3, *canvas, generator=torch.Generator().manual_seed(0))
    kept = {name: t.clone() for name, t in prepared.state_dict().items()}
    for module in (body, prepared):
        module.set_canvas(canvas)
    assert all(torch.equal(t, kept[name]) for name, t in prepared.state_dict().items())  # files know no canvas
    for found, wanted in zip(prepared(image).maps, body(image).maps, strict=True):
        assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert not any(isinstance(m, nn.Conv2d) for m in prepared.patch_embed.modules())
    assert all(isinstance(block.attn, CanvasAttention) for block in blocks_of(prepared))


def test_another_canvas_is_not_taken_silently(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set to \(160, 192\), the image has \(160, 224\)"):
        toy_detector(tmp_path, cascade=False).body(torch.zeros(1, 3, 160, 224))


@pytest.mark.parametrize("cascade", [False, True])
def test_every_part_is_one_graph_of_fixed_shapes(cascade: bool) -> None:
    """Nothing in a part depends on the data, and no mask is made inside: torch traces it whole, and finds constants."""
    model = Detector(toy(cascade=cascade), (64, 96)).eval().requires_grad_(False)
    prepare(model.body)
    inputs = {
        "body": torch.zeros(1, 3, 64, 96),
        "box": torch.zeros(5, 16, BOX_SIDE, BOX_SIDE),
        "mask": torch.zeros(5, 16, MASK_SIDE, MASK_SIDE),
    }
    parts = model.parts()
    assert list(parts) == (
        ["body", "box.0", "box.1", "box.2", "mask.0", "mask.1", "mask.2"] if cascade else ["body", "box", "mask"]
    )
    for name in ("box.0", "mask.2") if cascade else parts:
        graph = torch.export.export(parts[name], (inputs[name.split(".")[0]],)).graph
        called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
        assert called & {"aten.conv2d.default", "aten.linear.default"}
        assert not [op for op in called if op.split(".")[1:2] in DYNAMIC]


def test_masks_are_one_a_stage(tmp_path: Path) -> None:
    body = toy_detector(tmp_path, cascade=False).body
    masks = [block.mask for block in blocks_of(body)]
    assert [m is None for m in masks] == [True, False] * 4
    assert [tuple(m.shape) for m in masks if m is not None] == [(w, 49, 49) for w in (6 * 7, 3 * 4, 2 * 2, 1)]
    assert not [name for name in body.state_dict() if "mask" in name or "shift" in name]
