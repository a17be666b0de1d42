"""Under which names, and with which rows, the published files hold a detector's weights.

Their classes are 0 … K−1 and the background K; they have no offsets and no mask for the background. Ours is class 0: the
last row of the scores moves to the front, and rows of zeros stand in front of the offsets and the masks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.models.detectors.heads import CONVOLUTIONS

FULLY = CONVOLUTIONS + 1  # index of the hidden layer behind a cascade head's convolutions and their flattening
BACKGROUND_OFFSETS, BACKGROUND_MASKS = 4, 1  # rows

# (ours, theirs); a cascade's {head} is "c." and nothing else's has one
NAMES = (
    (r"body\.patch_embed\.(.+)", r"backbone.patch_embed.\1"),
    (r"body\.layers\.(\d+)\.(blocks\..+)", r"backbone.layers.\1.\2"),
    (r"body\.norms\.(\d+)\.(.+)", r"backbone.norm\1.\2"),
    (r"body\.fpn\.inner_blocks\.(\d+)\.0\.(.+)", r"neck.lateral_convs.\1.conv.\2"),
    (r"body\.fpn\.layer_blocks\.(\d+)\.0\.(.+)", r"neck.fpn_convs.\1.conv.\2"),
    (r"body\.rpn\.conv\.0\.0\.(.+)", r"rpn_head.rpn_conv.\1"),
    (r"body\.rpn\.cls_logits\.(.+)", r"rpn_head.rpn_cls.\1"),
    (r"body\.rpn\.bbox_pred\.(.+)", r"rpn_head.rpn_reg.\1"),
    (r"box\.(\d+)\.head\.fc6\.(.+)", r"roi_head.bbox_head.{head}shared_fcs.0.\2"),
    (r"box\.(\d+)\.head\.fc7\.(.+)", r"roi_head.bbox_head.{head}shared_fcs.1.\2"),
    (rf"box\.(\d+)\.head\.{FULLY}\.(.+)", r"roi_head.bbox_head.{head}shared_fcs.0.\2"),
    (r"box\.(\d+)\.head\.(\d+)\.0\.(.+)", r"roi_head.bbox_head.{head}shared_convs.\2.conv.\3"),
    (r"box\.(\d+)\.predictor\.cls_score\.(.+)", r"roi_head.bbox_head.{head}fc_cls.\2"),
    (r"box\.(\d+)\.predictor\.bbox_pred\.(.+)", r"roi_head.bbox_head.{head}fc_reg.\2"),
    (r"mask\.(\d+)\.head\.(\d+)\.0\.(.+)", r"roi_head.mask_head.{head}convs.\2.conv.\3"),
    (r"mask\.(\d+)\.predictor\.conv5_mask\.(.+)", r"roi_head.mask_head.{head}upsample.\2"),
    (r"mask\.(\d+)\.predictor\.mask_fcn_logits\.(.+)", r"roi_head.mask_head.{head}conv_logits.\2"),
)
MERGING = re.compile(r"body\.layers\.(\d+)\.downsample\.(.+)")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How the rows of a published tensor become ours."""

    added: int  # that we have and the file has not
    ours: Callable[[Tensor], Tensor]


SAME = Rows(added=0, ours=lambda t: t)
ROWS = {
    "cls_score": Rows(added=0, ours=lambda t: torch.cat((t[-1:], t[:-1]))),
    "bbox_pred": Rows(added=BACKGROUND_OFFSETS, ours=lambda t: _zeros_first(t, BACKGROUND_OFFSETS)),
    "mask_fcn_logits": Rows(added=BACKGROUND_MASKS, ours=lambda t: _zeros_first(t, BACKGROUND_MASKS)),
}


def published_name(ours: str, *, cascade: bool) -> str:
    """The published name of one of our tensors. KeyError for a name that is not ours."""
    if merging := MERGING.fullmatch(ours):  # timm merges patches where a stage begins, the others where one ends
        return f"backbone.layers.{int(merging[1]) - 1}.downsample.{merging[2]}"
    for pattern, theirs in NAMES:
        if match := re.fullmatch(pattern, ours):
            return match.expand(theirs).replace("{head}", f"{match[1]}." if cascade else "")
    raise KeyError(ours)


def published_rows(ours: str) -> Rows:
    """How the rows of the tensor of that name of ours are found in the published one."""
    part, *_, layer, _ = ours.split(".")
    return ROWS.get(layer, SAME) if part in ("box", "mask") else SAME


def _zeros_first(t: Tensor, n: int) -> Tensor:
    return torch.cat((t.new_zeros(n, *t.shape[1:]), t))
