"""Files of detectors: the four published ones load strictly, every other one is refused by name, and nothing in one runs."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published_detector import CANVAS, published_shapes, random_state, toy, toy_detector
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead

from erq_export.contract.errors import DataError, ErqError, SpecError
from erq_export.models.detectors.architecture import PUBLISHED
from erq_export.models.detectors.checkpoints import load_published, read_published
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.published_names import published_name, published_rows

State = dict[str, Tensor]
MILLIONS = {  # of parameters: 47.8, 69.1, 85.6, 106.9
    "mask_rcnn_swin_t": 47_794_602,
    "mask_rcnn_swin_s": 69_112_506,
    "cascade_mask_rcnn_swin_t": 85_629_804,
    "cascade_mask_rcnn_swin_s": 106_947_708,
}
NO_PARAMETERS = ("relative_position_index", "running_mean", "running_var", "num_batches_tracked")
SITES = {  # Conv2d, Linear, ConvTranspose2d, two products in each attention
    "mask_rcnn_swin_t": (17, 55, 1, 24),
    "mask_rcnn_swin_s": (17, 103, 1, 48),
    "cascade_mask_rcnn_swin_t": (39, 60, 3, 24),
    "cascade_mask_rcnn_swin_s": (39, 108, 3, 48),
}
BACKGROUND = {"fc_reg": 4, "conv_logits": 1}  # rows that only we have


def save(folder: Path, state: Any) -> Path:
    path = folder / "w.pth"
    torch.save({"meta": {"epoch": 36, "CLASSES": ("person",)}, "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


def refused(path: Path, *, cascade: bool = False, match: str, error: type[ErqError] = DataError) -> ErqError:
    """The error; and the detector is what it was."""
    model = Detector(toy(cascade=cascade), CANVAS)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match) as caught:
        read_published(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(str(caught.value)) < 1500
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_names_and_shapes_load_strictly(tmp_path: Path, name: str) -> None:
    shapes = published_shapes(PUBLISHED[name].architecture)
    n = sum(torch.Size(shape).numel() for k, shape in shapes.items() if not k.endswith(NO_PARAMETERS))
    assert n == MILLIONS[name]
    generator = torch.Generator().manual_seed(0)
    state = {
        k: torch.zeros(shape, dtype=torch.long)
        if k.endswith(NO_PARAMETERS[::3])
        else torch.rand(shape, generator=generator)
        for k, shape in shapes.items()
    }
    model = load_published(name, save(tmp_path, state), canvas=(800, 1344))
    assert torch.equal(
        model.body.layers[2].downsample.reduction.weight, state["backbone.layers.1.downsample.reduction.weight"]
    )
    assert torch.equal(model.body.norms[3].bias, state["backbone.norm3.bias"])
    last = f"roi_head.bbox_head.{'2.' if 'cascade' in name else ''}fc_cls.bias"
    assert torch.equal(model.box[-1].predictor.cls_score.bias, state[last].roll(1))
    kept = sum(p.numel() for p in model.parameters())
    folded = sum(shape[0] for k, shape in shapes.items() if k.endswith(".bn.weight"))
    heads = 3 if "cascade" in name else 1
    assert kept == n - folded + heads * (4 * 1025 + 257)  # a BatchNorm's two rows become one bias; background


@pytest.mark.parametrize("name", PUBLISHED)
def test_sites_are_as_many_as_were_counted(name: str) -> None:
    with torch.device("meta"):
        model = Detector(PUBLISHED[name].architecture, (800, 1344))
    n_blocks = sum(PUBLISHED[name].architecture.depths)
    kinds = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    assert (*(sum(type(m) is kind for m in model.modules()) for kind in kinds), 2 * n_blocks) == SITES[name]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("cascade", [False, True])
def test_every_tensor_of_the_file_arrives_in_one_place(tmp_path: Path, cascade: bool) -> None:
    """Row by row: the background's scores move to the front, and it gets offsets and a mask of zeros."""
    state, model = random_state(toy(cascade=cascade), seed=1), toy_detector(tmp_path, cascade=cascade)
    ours = model.state_dict()
    names = [published_name(name, cascade=cascade) for name in ours]
    assert len(set(names)) == len(names)
    normalised = {n for n in state if ".shared_convs." in n}
    assert {n for n in state if not n.endswith("relative_position_index")} - normalised == set(names) - normalised - {
        n.replace("weight", "bias") for n in normalised if n.endswith("conv.weight")
    }
    for name, theirs in zip(ours, names, strict=True):
        if theirs in normalised or theirs not in state:
            continue
        layer = theirs.split(".")[-2]
        n = BACKGROUND.get(layer, 0)
        assert not ours[name][:n].any()
        wanted = state[theirs].roll(1, 0) if layer == "fc_cls" else state[theirs]
        assert torch.equal(ours[name][n:], wanted)


def test_names_that_are_not_ours_have_no_published_one() -> None:
    with pytest.raises(KeyError):
        published_name("box.0.head.bn.weight", cascade=True)
    assert published_rows("body.rpn.bbox_pred.weight").added == 0  # of anchors, not of classes


@torch.no_grad()
def test_batch_norms_are_folded_into_their_convolutions(tmp_path: Path) -> None:
    """Against torchvision's head with its BatchNorms, in float32: four layers, 1e-5 of the largest value."""
    state, model = random_state(toy(cascade=True), seed=1), toy_detector(tmp_path, cascade=True)
    theirs = FastRCNNConvFCHead((16, 7, 7), [16] * 4, [32], norm_layer=nn.BatchNorm2d).eval()
    start = "roi_head.bbox_head.1."
    layers = {f"shared_convs.{i}.conv": f"{i}.0" for i in range(4)} | {
        f"shared_convs.{i}.bn": f"{i}.1" for i in range(4)
    }
    layers["shared_fcs.0"] = "5"
    theirs.load_state_dict(
        {
            f"{layers[layer]}.{part}": t
            for name, t in state.items()
            if name.startswith(start)
            for layer, _, part in [name.removeprefix(start).rpartition(".")]
            if layer in layers
        }
    )
    x = torch.randn(3, 16, 7, 7, generator=torch.Generator().manual_seed(0))
    wanted = theirs(x)
    assert float((model.box[1].head(x) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    for i in range(4):
        theirs[i][1] = nn.Identity()
    assert float((theirs(x) - wanted).abs().max()) > 0.1 * float(wanted.abs().max())


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    for old, new in pairs:
        state = {k.replace(old, new): v for k, v in state.items()}
    return state


def of_another(**change: Any) -> State:
    return random_state(replace(toy(cascade=False), **change))


OTHERS: dict[str, tuple[Callable[[], State], str]] = {
    "zoo": (
        lambda: renamed(
            random_state(toy(cascade=False)), ("backbone.layers.", "backbone.stages."), (".attn.", ".attn.w_msa.")
        ),
        r"OpenMMLab's zoo.*: backbone\.stages\.0",
    ),
    "detectron2": (
        lambda: renamed(random_state(toy(cascade=False)), ("backbone.", "backbone.bottom_up.")),
        r"detectron2: backbone\.bottom_up\.",
    ),
    "torchvision": (lambda: {"backbone.body.conv1.weight": torch.zeros(1)}, r"torchvision: backbone\.body\.conv1"),
    "classifier": (
        lambda: {k.removeprefix("backbone."): v for k, v in random_state(toy(cascade=False)).items()},
        r"Swin classifier.*: layers\.0\.",
    ),
    "cascade": (
        lambda: random_state(toy(cascade=True)),
        r"of a Cascade Mask R-CNN, not of a Mask R-CNN: roi_head\.bbox_head\.0\.fc_cls\.bias",
    ),
    "width": (
        lambda: of_another(dim=32),
        r"32 channels in its first stage, not 16: backbone\.patch_embed\.proj\.weight",
    ),
    "deeper": (
        lambda: of_another(depths=(2, 2, 6, 2)),
        r"more blocks than \(2, 2, 2, 2\).*layers\.2\.blocks\.2\.norm1",
    ),
    "shallower": (
        lambda: of_another(depths=(2, 2, 1, 2)),
        r"fewer blocks than .*no backbone\.layers\.2\.blocks\.1",
    ),
    "classes": (lambda: of_another(classes=7), r"tells 7 classes apart, not 5: roi_head\.bbox_head\.fc_cls\.weight"),
    "channels": (lambda: of_another(channels=8), r"neck\.\S+: 8.* in the file, 16.* in the detector.*and \d+ more"),
    "window": (lambda: of_another(window=5), r"relative_position_bias_table: 81×1 in the file, 169×1 in the detector"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, says = OTHERS[kind]
    fix = refused(save(tmp_path, make()), match=says).fix
    assert "mask_rcnn_swin_t" in fix


def test_a_single_head_is_no_cascade(tmp_path: Path) -> None:
    path = save(tmp_path, random_state(toy(cascade=False)))
    refused(path, cascade=True, match=r"of a Mask R-CNN, not of a Cascade Mask R-CNN: roi_head\.bbox_head\.fc_cls")


@pytest.mark.slow
def test_the_fix_names_the_file_that_was_published(tmp_path: Path) -> None:
    path = save(tmp_path, random_state(toy(cascade=False)))
    with pytest.raises(DataError, match="16 channels") as caught:
        load_published("mask_rcnn_swin_t", path, canvas=(64, 64))
    assert caught.value.fix.startswith("mask_rcnn_swin_tiny_patch4_window7.pth")
    with pytest.raises(SpecError, match="unknown detector 'mask_rcnn_swin_x'") as unknown:
        load_published("mask_rcnn_swin_x", path, canvas=(64, 64))
    assert "mask_rcnn_swin_t" in unknown.value.fix


HUGE = f"backbone.layers.{'9' * 400}.blocks.0.norm1.weight"
BN = "roi_head.bbox_head.1.shared_convs.2.bn"
CHANGES: dict[str, tuple[Callable[[State], Any], str]] = {
    "missing": (lambda s: s.pop("neck.fpn_convs.1.conv.bias"), r"neck\.fpn_convs\.1\.conv\.bias: missing in the file"),
    "more": (lambda s: s.update({"ema.x": torch.zeros(1)}), r"ema\.x: not in the detector"),
    "hostile name": (lambda s: s.update({"a\n\x1b[31m": torch.zeros(1)}), r"a\\n\\x1b\[31m: not in the detector"),
    "huge name": (
        lambda s: s.update({f"backbone.layers.{'9' * 400}.blocks.0.norm1.weight": torch.zeros(1)}),
        "not in the detector",
    ),
    "no number": (lambda s: s["rpn_head.rpn_cls.bias"].fill_(float("nan")), r"rpn_head\.rpn_cls\.bias holds NaN"),
    "integers": (lambda s: s.update({"rpn_head.rpn_cls.bias": torch.zeros(3, dtype=torch.int8)}), "holds torch.int8"),
    "shape": (lambda s: s.update({"backbone.norm0.bias": torch.zeros(4, 4)}), r"norm0\.bias: 4×4 in the file, 16 in"),
    "no shape": (
        lambda s: s.update({"backbone.patch_embed.proj.weight": torch.zeros(())}),
        "proj.weight: a number in the file",
    ),
    "half a norm": (lambda s: s.pop(f"{BN}.bias"), r"shared_convs\.2\.bn\.bias is missing"),
    "long norm": (lambda s: s.update({f"{BN}.weight": torch.ones(17)}), r"bn\.weight does not fit the rows of .*conv"),
    "no variance": (lambda s: s[f"{BN}.running_var"].fill_(-1), r"running_var holds what is no variance"),
    "no convolution": (lambda s: s.pop(f"{BN[:-2]}conv.weight"), r"shared_convs\.2\.conv\.weight is missing"),
    "a number for one": (lambda s: s.update({f"{BN[:-2]}conv.weight": torch.ones(())}), r"does not fit"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_differs_is_named(tmp_path: Path, kind: str) -> None:
    state = random_state(toy(cascade=True))
    change, says = CHANGES[kind]
    change(state)
    refused(save(tmp_path, state), cascade=True, match=says)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_common_width_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    state = random_state(toy(cascade=True))
    model = Detector(toy(cascade=True), CANVAS)
    read_published(model, save(tmp_path, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}))
    assert all(t.dtype == torch.float32 for t in model.state_dict().values())
    assert torch.equal(model.body.norms[0].weight, state["backbone.norm0.weight"].to(dtype).float())


class Touch:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_file_executes_nothing(tmp_path: Path) -> None:
    path, trace = save(tmp_path, random_state(toy(cascade=False)) | {"x": Touch(tmp_path / "ran")}), tmp_path / "ran"
    refused(path, match="holds more than tensors")
    path.write_bytes(pickle.dumps(Touch(trace)))
    refused(path, match="more than tensors|no pickle|cannot read")
    assert not trace.exists()


def test_a_damaged_file_is_refused_or_whole(tmp_path: Path) -> None:
    path = save(tmp_path, random_state(toy(cascade=False)))
    whole = path.read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(path, match="cannot read the checkpoint")


def test_no_file_is_no_detector(tmp_path: Path) -> None:
    refused(tmp_path / "absent.pth", match="there is no checkpoint")
    refused(tmp_path, match="it is a folder")
