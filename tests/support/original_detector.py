"""Results of the original detectors, recorded: `python tests/support/original_detector.py FOLDER` writes tests/golden/original_*.

FOLDER is one into which pip installed mmcv 1.7.2, mmdet 2.11.0 (what Swin's authors built on) and what these import, and whose
`later` holds mmdet 2.28.2, whose Swin takes the published weights through its own converter. mmcv's compiled operators are
torchvision's here, so that nothing has to be compiled.
"""

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from published_detector import LARGE_FRAMING, LARGE_PICTURE, LARGE_SEED, framed, picture, random_state, toy
from safetensors.torch import save_file
from torch import Tensor, nn

from erq_export.models.detectors.architecture import Architecture
from erq_export.models.detectors.framing import Framed

GOLDEN = Path(__file__).parents[1] / "golden"
SCALES = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
N_MASKS = 12  # best detections whose masks are kept


def installed(folder: Path) -> None:
    """Make mmdet importable: its operators, the version of mmcv that it asks for, and the later Swin in its place."""
    sys.path.insert(0, str(folder))
    operators = types.ModuleType("mmcv._ext")
    operators.nms, operators.roi_align_forward = _nms, _roi_align  # type: ignore[attr-defined]
    operators.__getattr__ = _other  # type: ignore[method-assign]
    format_code = types.ModuleType("yapf.yapflib.yapf_api")
    format_code.FormatCode = lambda text, **_: (text, True)  # type: ignore[attr-defined]
    sys.modules |= {"mmcv._ext": operators, "yapf": types.ModuleType("yapf"), "yapf.yapflib.yapf_api": format_code}
    sys.modules["yapf.yapflib"] = types.ModuleType("yapf.yapflib")
    import mmcv

    found, mmcv.__version__ = mmcv.__version__, "1.3.0"
    __import__("mmdet.models")

    mmcv.__version__ = found
    later = folder / "later" / "mmdet" / "models"
    for name in ("utils.ckpt_convert", "utils.transformer", "backbones.swin"):
        text = (later / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        module = types.ModuleType(f"mmdet.models.{name}")
        module.__package__, module.__file__ = module.__name__.rpartition(".")[0], name
        sys.modules[module.__name__] = module
        if name == "utils.transformer":  # its layers are registered already, by the older version
            text = re.sub(r"@TRANSFORMER\w*\.register_module\([^)]*\)", "", text)
        exec(compile(text, name, "exec"), module.__dict__)
    module.SwinTransformer.init_weights = lambda self, pretrained=None: None


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    if offset:
        raise ValueError("boxes of whole pixels")
    return torchvision.ops.nms(boxes, scores, float(iou_threshold))


def _roi_align(x: Tensor, rois: Tensor, out: Tensor, *_: Tensor, **how: Any) -> None:
    side = (how["aligned_height"], how["aligned_width"])
    if how["pool_mode"] != 1:
        raise ValueError("the largest sample, not the mean")
    out.copy_(torchvision.ops.roi_align(x, rois, side, how["spatial_scale"], how["sampling_ratio"], how["aligned"]))


def _other(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return None


def original(a: Architecture, state: dict[str, Tensor], folder: Path) -> Any:
    """The configuration that was published for Swin, with the widths of `a`, and these weights, loaded strictly."""
    from mmcv import Config
    from mmdet.models import build_detector
    from mmdet.models.utils.ckpt_convert import swin_converter

    base = folder / "later" / "mmdet" / ".mim" / "configs" / "_base_" / "models"
    config = Config.fromfile(str(base / f"{'cascade_' if a.cascade else ''}mask_rcnn_r50_fpn.py")).model
    config.pop("train_cfg")
    tested, c = config.pop("test_cfg"), a.channels
    tested.rpn.nms_post = 1000
    config.pop("backbone")
    config.backbone = {
        "type": "SwinTransformer",
        "embed_dims": a.dim,
        "depths": a.depths,
        "num_heads": a.heads,
        "drop_path_rate": 0.0,
    }
    config.neck = {"type": "FPN", "in_channels": list(a.widths), "out_channels": c, "num_outs": 5}
    config.rpn_head.in_channels = config.rpn_head.feat_channels = c
    heads = config.roi_head
    heads.bbox_roi_extractor.out_channels = heads.mask_roi_extractor.out_channels = c
    heads.mask_head.update(in_channels=c, conv_out_channels=c, num_classes=a.classes)
    if a.cascade:
        heads.bbox_head = [_box_head(a, scales) for scales in SCALES]
    else:
        heads.bbox_head.update(in_channels=c, fc_out_channels=a.features, num_classes=a.classes)
    model = build_detector(config, train_cfg=None, test_cfg=tested).eval()
    start = "backbone."
    body = swin_converter({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
    heads_state = {k: v for k, v in state.items() if not k.startswith(start)}
    model.load_state_dict(heads_state | {start + k.removeprefix(start): v for k, v in body.items()}, strict=True)
    return model


def _box_head(a: Architecture, scales: list[float]) -> dict[str, Any]:
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": scales}
    return {
        "type": "ConvFCBBoxHead",
        "num_shared_convs": 4,
        "num_shared_fcs": 1,
        "in_channels": a.channels,
        "conv_out_channels": a.channels,
        "fc_out_channels": a.features,
        "num_classes": a.classes,
        "bbox_coder": coder,
        "reg_class_agnostic": False,
        "norm_cfg": {"type": "SyncBN"},
    }


@torch.no_grad()
def results(model: nn.Module, image: Framed) -> dict[str, Tensor]:
    """What the original makes of the image, best detections first; the two finest maps thinned to every fourth place."""
    meta = {
        "img_shape": (*image.size, 3),
        "ori_shape": (*image.given, 3),
        "scale_factor": image.scale.numpy(),
        "flip": False,
        "flip_direction": None,
    }
    maps = model.extract_feat(image.pixels)  # type: ignore[operator]
    proposals = model.rpn_head.simple_test_rpn(maps, [meta])[0]  # type: ignore[union-attr, operator]
    boxes, masks = next(iter(model.roi_head.simple_test(maps, [proposals], [meta], rescale=True)))  # type: ignore[union-attr, operator]
    found = [
        (*b, c + 1, m) for c, both in enumerate(zip(boxes, masks, strict=True)) for b, m in zip(*both, strict=True)
    ]
    found.sort(key=lambda row: -row[4])
    packed = np.packbits(np.stack([row[6] for row in found[:N_MASKS]]).reshape(N_MASKS, -1), axis=1)
    thinned = [m[0, :, :: 4 if i < 2 else 1, :: 4 if i < 2 else 1] for i, m in enumerate(maps)]
    return {f"map.{i}": m.contiguous() for i, m in enumerate(thinned)} | {
        "proposals": proposals[:, :4].contiguous(),
        "boxes": torch.tensor(np.array([row[:4] for row in found])),
        "scores": torch.tensor(np.array([row[4] for row in found])),
        "labels": torch.tensor([row[5] for row in found]),
        "masks": torch.from_numpy(packed),
    }


def main(folder: Path) -> None:
    installed(folder)
    for cascade in (False, True):
        a = toy(cascade=cascade)
        model = original(a, random_state(a, seed=1), folder)
        save_file(results(model, framed()), GOLDEN / f"original_{'cascade_' if cascade else ''}mask_rcnn.safetensors")
        if not cascade:
            model = original(a, random_state(a, seed=LARGE_SEED), folder)
            large = results(model, LARGE_FRAMING(picture(*LARGE_PICTURE)))
            save_file({"proposals": large["proposals"]}, GOLDEN / "original_large.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
