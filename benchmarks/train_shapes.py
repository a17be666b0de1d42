"""Train a stand-in for the published detectors: python benchmarks/train_shapes.py [--name NAME] [--out FOLDER] [--steps N].

Scenes are drawn anew at every step, so none is seen twice; those that the detector is judged on have another seed. A training
that was stopped goes on from NAME.state.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sheet
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import box_iou, masks_to_boxes, roi_align
from training import Training

from erq_export.contract.errors import SpecError
from erq_export.data.scenes import HEIGHT, WIDTH, scene
from erq_export.models.detectors.anchors import anchors
from erq_export.models.detectors.architecture import STAND_INS
from erq_export.models.detectors.body import Pyramid
from erq_export.models.detectors.boxes import clipped, decode
from erq_export.models.detectors.detector import SCALES, Detector
from erq_export.models.detectors.framing import Framing
from erq_export.models.detectors.heads import BOX_SIDE, MASK_SIDE
from erq_export.models.detectors.pooling import pooled
from erq_export.models.detectors.proposals import proposals

SIZE = (HEIGHT, WIDTH)
FRAMING = Framing(short=HEIGHT, long=WIDTH)
TRAINED_ON = 0  # seed of the scenes
BATCH, WARMUP = 4, 200
EMA_DECAY = 0.998  # a mean over about the last 500 steps
OVERLAPS = (0.5, 0.6, 0.7)  # IoU with a thing from which on a box is one of it, head by head
WEIGHTS = (1.0, 0.5, 0.25)  # of the heads' losses
STATE_EVERY = 100  # steps
ANCHORS = Matcher(0.7, 0.3, allow_low_quality_matches=True)
ANCHOR_SAMPLER, BOX_SAMPLER = BalancedPositiveNegativeSampler(256, 0.5), BalancedPositiveNegativeSampler(128, 0.25)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is on one scene."""

    boxes: Tensor  # (n, 4)
    labels: Tensor  # (n,)
    masks: Tensor  # (n, H, W)


def drawn(i: int) -> tuple[Tensor, Truth]:
    """Pixels (1, 3, H, W) of the i-th scene, and what is on it."""
    found = scene(i, seed=TRAINED_ON)
    masks = torch.from_numpy(found.masks)
    boxes = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # a box ends behind the last pixel
    pixels = FRAMING(torch.from_numpy(found.picture).permute(2, 0, 1)).pixels
    return pixels, Truth(boxes=boxes, labels=torch.tensor(found.labels), masks=masks.float())


def loss_of(detector: Detector, pixels: Tensor, truths: Sequence[Truth]) -> Tensor:
    """Of the proposals, and of every head's classes, boxes and masks."""
    pyramid = detector.body(pixels)
    loss = proposal_loss(pyramid, truths)
    alone = [Pyramid(*(tuple(t[b : b + 1] for t in kind) for kind in pyramid)) for b in range(len(truths))]
    with torch.no_grad():
        boxes = [torch.cat((proposals(p, SIZE), t.boxes)) for p, t in zip(alone, truths, strict=True)]
    for i, (box, mask) in enumerate(zip(detector.box, detector.mask, strict=True)):
        chosen = [sampled(b, t, OVERLAPS[i]) for b, t in zip(boxes, truths, strict=True)]
        inside = torch.cat([pooled(p.maps, b, BOX_SIDE) for p, (b, _, _) in zip(alone, chosen, strict=True)])
        logits, deltas = box(inside)
        coder = BoxCoder(tuple(1 / scale for scale in SCALES[i]))
        goals = [coder.encode_single(t.boxes[at], b) for t, (b, at, _) in zip(truths, chosen, strict=True)]
        labels = [label for _, _, label in chosen]
        of_classes, of_boxes = fastrcnn_loss(logits, deltas.flatten(1), labels, goals)
        loss = loss + WEIGHTS[i] * (of_classes + of_boxes + mask_loss(mask, alone, chosen, truths))
        with torch.no_grad():  # the next head looks where this one's best class wants the boxes
            best = logits[:, 1:].argmax(1) + 1
            now = torch.cat([b for b, _, _ in chosen])
            moved = clipped(decode(deltas[torch.arange(len(best)), best], now, SCALES[i]), SIZE)
            parts = moved.split([len(b) for b, _, _ in chosen])
            boxes = [torch.cat((part, t.boxes)) for part, t in zip(parts, truths, strict=True)]
    return loss


def proposal_loss(pyramid: Pyramid, truths: Sequence[Truth]) -> Tensor:
    """Is there a thing at an anchor, and how far is it from it?"""
    places = torch.cat(anchors([(m.shape[2], m.shape[3]) for m in pyramid.maps], pyramid.maps[0]))  # (N, 4)
    logits = torch.cat([o.permute(0, 2, 3, 1).flatten(1) for o in pyramid.objectness], 1)  # (B, N)
    deltas = torch.cat([d.permute(0, 2, 3, 1).reshape(len(d), -1, 4) for d in pyramid.deltas], 1)  # (B, N, 4)
    loss = logits.new_zeros(())
    for b, truth in enumerate(truths):
        at = ANCHORS(box_iou(truth.boxes, places))  # (N,) which thing, −1 for none, −2 for neither
        here = torch.where(at >= 0, 1, torch.where(at == Matcher.BELOW_LOW_THRESHOLD, 0, -1))
        positive, negative = (mask[0].nonzero()[:, 0] for mask in ANCHOR_SAMPLER([here]))
        both = torch.cat((positive, negative))
        goals = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(truth.boxes[at[positive]], places[positive])
        loss = loss + F.binary_cross_entropy_with_logits(logits[b, both], here[both].float())
        loss = loss + F.smooth_l1_loss(deltas[b, positive], goals, beta=1 / 9, reduction="sum") / len(both)
    return loss / len(truths)


Chosen = tuple[Tensor, Tensor, Tensor]  # boxes (n, 4), which thing each is matched with (n,), its label, 0 for none


def sampled(boxes: Tensor, truth: Truth, overlap: float) -> Chosen:
    """Some boxes with a thing in them, and more without."""
    at = Matcher(overlap, overlap, allow_low_quality_matches=False)(box_iou(truth.boxes, boxes))
    labels = torch.where(at >= 0, truth.labels[at.clamp(min=0)], 0)
    positive, negative = (mask[0].nonzero()[:, 0] for mask in BOX_SAMPLER([labels]))
    both = torch.cat((positive, negative))
    return boxes[both], at[both].clamp(min=0), labels[both]


def mask_loss(head: nn.Module, alone: Sequence[Pyramid], chosen: Sequence[Chosen], truths: Sequence[Truth]) -> Tensor:
    """Of the masks of boxes with a thing, each of its own class."""
    inside, goals, labels = [], [], []
    for pyramid, (boxes, at, label), truth in zip(alone, chosen, truths, strict=True):
        full = label > 0
        inside.append(pooled(pyramid.maps, boxes[full], MASK_SIDE))
        rois = torch.cat((at[full, None].float(), boxes[full]), 1)
        goals.append(roi_align(truth.masks[:, None], rois, 2 * MASK_SIDE, sampling_ratio=0, aligned=True)[:, 0])
        labels.append(label[full])
    label = torch.cat(labels)
    logits = head(torch.cat(inside))[torch.arange(len(label)), label]
    return F.binary_cross_entropy_with_logits(logits, torch.cat(goals))


def train(detector: Detector, steps: int, seed: int, state: Path, what: str) -> nn.Module:
    """Train for a number of steps; return the running mean of the weights. `what` is trained is kept in `state`, so that no other
    training goes on from it."""
    training = Training(detector, warmup=WARMUP, total=steps, ema_decay=EMA_DECAY)
    kept: dict[str, Any] = {name: getattr(training, name) for name in ("model", "optimizer", "schedule", "averaged")}
    first = 0
    if state.is_file():
        found = torch.load(state, weights_only=True)
        if found["what"] != what:
            raise SpecError(
                f"{state} is of another training: {found['what']}", fix=f"remove it, or another --out for {what}"
            )
        first = int(found["step"])
        for name, one in kept.items():
            one.load_state_dict(found[name])
    losses, start = list[float](), time.perf_counter()
    for step in range(first, steps):
        torch.manual_seed(
            1000 * seed + step
        )  # of the samplers: a training that goes on draws as one that never stopped
        scenes = [drawn(BATCH * (steps * seed + step) + k) for k in range(BATCH)]
        loss = loss_of(detector, torch.cat([pixels for pixels, _ in scenes]), [truth for _, truth in scenes])
        losses.append(training.step(loss))
        if (step + 1) % STATE_EVERY == 0:
            now = {name: one.state_dict() for name, one in kept.items()} | {"step": step + 1, "what": what}
            torch.save(now, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
            seconds = time.perf_counter() - start
            print(f"step {step + 1} of {steps}  loss {sum(losses) / len(losses):.4f}  {seconds:.0f} s", flush=True)
            losses, start = [], time.perf_counter()
    return training.averaged.module


def main() -> None:
    args = sheet.words(__doc__, {"name": "shapes", "out": Path("out"), "steps": 6000, "seed": 0})
    if args.name not in STAND_INS:
        raise SpecError(f"--name {args.name}", fix=f"one of {', '.join(STAND_INS)}")
    if args.steps <= WARMUP:
        raise SpecError(f"--steps {args.steps}", fix=f"more than {WARMUP}: the warm-up alone takes them")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    detector, state = Detector(STAND_INS[args.name], SIZE), args.out / f"{args.name}.state"
    trained = train(detector, args.steps, args.seed, state, f"{args.name}, {args.steps} steps, seed {args.seed}")
    weights = {key: tensor.half().contiguous() for key, tensor in trained.state_dict().items()}
    (args.out / f"{args.name}.safetensors").write_bytes(save(weights))
    state.unlink(missing_ok=True)


if __name__ == "__main__":
    sheet.start(main)
