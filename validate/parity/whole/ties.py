"""How far a choice is from one that falls either way, by the numbers of whoever did not make it.

Letters:  x (…) a layer's input, s its scale, q (…) the codes chosen;  t overlap (IoU) from which on two boxes are one thing
          A area, P perimeter, I intersection, U union of two boxes

Two correct programs differ in float32's last digits. Where a number lies halfway between two codes, or two anchors have the
same score, those digits decide, and everything behind them is another computation. Which of both was right cannot be said; that
both were possible can: the distance to the tie is rounding. At 4 bits scores are sums of few integers, and many are equal.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from erq_export.contract.floor import LARGEST
from erq_export.contract.formats.affine import Grid


@dataclass(frozen=True)
class Chosen:
    """n choices, how many the own numbers decide otherwise, and how far the furthest of those made is from a tie."""

    n: int
    other: int
    furthest: float


def rounded(grid: Grid, x: Tensor, q: Tensor) -> Chosen:
    """Codes for x. Distance: |x/s − the middle between q and the own code|, as a share of the grid's largest code, as x is off
    by a share of itself."""
    own = grid.quantize(x)
    differ = own != q
    other = int(differ.count_nonzero())
    if not other:
        return Chosen(x.numel(), 0, 0.0)
    middle = (own[differ] + q[differ]).double() / 2
    end = torch.maximum(grid.qmin.abs(), grid.qmax.abs()).double()
    return Chosen(x.numel(), other, worst((x[differ].double() / grid.scale.double() - middle).abs() / end))


def among_best(scores: Tensor, chosen: Tensor) -> Chosen:
    """The k best of scores (n,), as indices (k,) in any order. Distance: how much better the best of those left out is than the
    worst of them, as a share of the largest score."""
    out = torch.ones(len(scores), dtype=torch.bool)
    out[chosen] = False
    other = int(out[scores.topk(len(chosen)).indices].sum())
    if int((~out).sum()) < len(chosen):
        return Chosen(len(chosen), other, LARGEST)  # twice the same
    if not out.any() or not len(chosen):
        return Chosen(len(chosen), other, 0.0)
    return Chosen(len(chosen), other, worst(_share(scores[out].max() - scores[chosen].min(), scores)))


def largest(scores: Tensor, chosen: Tensor) -> Chosen:
    """Of scores (n, K) the column (n,) that is largest. Distance: as above."""
    best = scores.max(1)
    worse = best.values - scores.gather(1, chosen[:, None])[:, 0]
    return Chosen(len(chosen), int((best.indices != chosen).sum()), worst(_share(worse, scores)))


def above(scores: Tensor, least: float, chosen: Tensor) -> Chosen:
    """Which of the scores (…) are above `least`: chosen (…) bool. Distance: from `least`, of those chosen otherwise."""
    otherwise = (scores > least) != chosen
    return Chosen(scores.numel(), int(otherwise.sum()), worst((scores[otherwise] - least).abs()))


def on_levels(own: Tensor, chosen: Tensor, n_levels: int) -> Chosen:
    """The level (n,) that boxes are pooled from;  own (n,): where they lie between levels, before that is rounded down and
    bounded. Distance: from the border of the level chosen."""
    below = torch.where(chosen > 0, chosen - own, 0)
    beyond = torch.where(chosen < n_levels - 1, own - (chosen + 1), 0)
    other = own.floor().clamp(0, n_levels - 1) != chosen
    return Chosen(len(own), int(other.sum()), worst(torch.maximum(below, beyond).clamp(min=0)))


@dataclass(frozen=True)
class Suppression:
    """Of boxes (n, 4) with scores (n,) those stay that overlap by more than t with no better one of their group (n,).

    A list is what greedy suppression gives exactly where (a) no two of one group in it overlap by more than t, (b) every other
    box overlaps by more than t with one of its group in the list that is not worse, (c) scores in it do not rise.
    """

    boxes: Tensor
    scores: Tensor
    group: Tensor
    t: float

    def chosen(self, stay: Tensor, *, pixels: float, score: float) -> Chosen:
        """stay (m,): the indices of those that stayed, best first. Distance: by how many pixels boxes, or by how much scores
        must be off for (a), (b) and (c) to hold, as a multiple of what they may be off."""
        own = batched_nms(self.boxes, self.scores, self.group, self.t)
        other = len(set(own.tolist()) ^ set(stay.tolist()))
        stays = torch.zeros(len(self.boxes), dtype=torch.bool)
        stays[stay] = True
        if int(stays.sum()) < len(stay):
            return Chosen(len(self.boxes), other, LARGEST)  # twice the same
        ordered = self.scores[stay]
        rises = ordered.flip(0).cummax(0).values.flip(0) - ordered if len(stay) else ordered
        off = worst(rises / score)
        for group in self.group.unique():
            here = self.group == group
            kept, gone = stay[here[stay]], (here & ~stays).nonzero()[:, 0]
            too_near = self._over(kept, kept).fill_diagonal_(-1)  # (m, m)
            off = max(off, worst(too_near.clamp(min=0) / pixels))
            if len(gone):
                reason = (-self._over(kept, gone)).clamp(min=0) / pixels  # (m, n − m) what the overlap lacks
                better = (self.scores[gone][None] - self.scores[kept][:, None]).clamp(min=0) / score
                lacks = torch.maximum(reason, better)
                off = max(off, worst(lacks.amin(0)) if len(kept) else LARGEST)
        return Chosen(len(self.boxes), other, off)

    def _over(self, a: Tensor, b: Tensor) -> Tensor:
        """(|a|, |b|) pixels by which pairs overlap more than allowed: (I − tU) / (P + P′).

        If every coordinate is off by δ, I is by at most δ min(P, P′) and an area by δ P, so I − tU = (1 + t) I − t (A + A′) is by
        at most δ (P + P′) (1 + 3t) / 2: 1.6 δ at t = 0.7.
        """
        one, two = self.boxes[a].double()[:, None], self.boxes[b].double()[None]
        sides, others = (box[..., 2:] - box[..., :2] for box in (one, two))
        shared = (torch.minimum(one[..., 2:], two[..., 2:]) - torch.maximum(one[..., :2], two[..., :2])).clamp(min=0)
        intersection = shared.prod(-1)
        union = sides.prod(-1) + others.prod(-1) - intersection
        around = 2 * (sides.sum(-1) + others.sum(-1))
        return (intersection - self.t * union) / around.clamp(min=torch.finfo(around.dtype).tiny)


def _share(distance: Tensor, scores: Tensor) -> Tensor:
    """Of the largest score; a negative distance is none."""
    size = scores.abs().max() if scores.numel() else scores.new_ones(())
    return distance.clamp(min=0) / size.clamp(min=torch.finfo(scores.dtype).tiny)


def worst(distances: Tensor) -> float:
    """The largest; the largest float in the place of infinity and NaN; 0 of none."""
    if not distances.numel():
        return 0.0
    return float(distances.double().nan_to_num(nan=LARGEST, posinf=LARGEST).max())
