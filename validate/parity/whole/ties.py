"""How far a choice is from one that falls either way, by the numbers of whoever did not make it.

Letters:  x (…) a layer's input, s its scale, q (…) the codes chosen;  t overlap (IoU) above which two boxes are one thing
          P perimeter, I intersection, U union of two boxes;  δ what numbers may be off by, for rounding

Two correct programs differ in float32's last digits. Where a number lies halfway between two codes, or two anchors have the
same score, those digits decide, and everything behind them is another computation. Which of both was right cannot be said; that
both were possible can: the distance to the tie is rounding. At 4 bits scores are sums of few integers, and many are equal.
Distances are multiples of what rounding explains: of δ, of 2δ where two numbers are compared. Up to 1 it was a tie.
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


def rounded(grid: Grid, x: Tensor, q: Tensor, *, off: float) -> Chosen:
    """Codes for x. Distance: of x/s from the middle between q and the own code;  off: what x may be off by, as a share of the
    largest number on the grid. A code beyond the grid is none that x could have."""
    own = grid.quantize(x)
    differ = own != q
    other = int(differ.count_nonzero())
    if not other:
        return Chosen(x.numel(), 0, 0.0)
    own, q = own[differ].double(), q[differ].double()
    end = torch.maximum(grid.qmin.abs(), grid.qmax.abs()).double()
    distance = (x[differ].double() / grid.scale.double() - (own + q) / 2).abs() / (off * end)
    return Chosen(x.numel(), other, worst(torch.where((q < grid.qmin) | (q > grid.qmax), LARGEST, distance)))


def among_best(scores: Tensor, chosen: Tensor, *, off: float) -> Chosen:
    """The k best of scores (n,), as indices (k,) in any order. Distance: how much better the best of those left out is than the
    worst of them;  off: of a score, as a share of the largest."""
    out = torch.ones(len(scores), dtype=torch.bool)
    out[chosen] = False
    other = int(out[scores.topk(len(chosen)).indices].sum())
    if int((~out).sum()) < len(chosen):
        return Chosen(len(chosen), other, LARGEST)  # twice the same
    if not out.any() or not len(chosen):
        return Chosen(len(chosen), other, 0.0)
    return Chosen(len(chosen), other, worst((scores[out].max() - scores[chosen].min()) / _both(scores, off)))


def largest(scores: Tensor, chosen: Tensor, *, off: float) -> Chosen:
    """Of scores (n, K) the column (n,) that is largest. Distance and `off` as above."""
    best = scores.max(1)
    worse = best.values - scores.gather(1, chosen[:, None])[:, 0]
    return Chosen(len(chosen), int((best.indices != chosen).sum()), worst(worse / _both(scores, off)))


def above(scores: Tensor, least: float, chosen: Tensor, *, off: float) -> Chosen:
    """Which of the scores (…) are above `least`: chosen (…) bool. Distance: from `least`, of those chosen otherwise."""
    otherwise = (scores > least) != chosen
    return Chosen(scores.numel(), int(otherwise.sum()), worst((scores[otherwise] - least).abs() / off))


def on_levels(between: Tensor, chosen: Tensor, n_levels: int, *, off: float) -> Chosen:
    """The level (n,) that boxes are pooled from;  between (n,): where they lie between levels, before that is rounded down and
    bounded. Distance: from the border of the level chosen."""
    below = torch.where(chosen > 0, chosen - between, 0)
    beyond = torch.where(chosen < n_levels - 1, between - (chosen + 1), 0)
    other = between.floor().clamp(0, n_levels - 1) != chosen
    return Chosen(len(between), int(other.sum()), worst(torch.maximum(below, beyond).clamp(min=0) / off))


@dataclass(frozen=True)
class Suppression:
    """Of boxes (n, 4) with scores (n,) those stay that overlap by more than t with no better one of their group (n,).

    A list is what greedy suppression gives, in one order of equal scores, exactly where (a) no two of one group in it overlap by
    more than t, (b) every other box overlaps by more than t with one of its group in the list that is not worse, (c) scores in
    it do not rise.
    """

    boxes: Tensor
    scores: Tensor
    group: Tensor
    t: float

    def chosen(self, stay: Tensor, *, pixels: float, off: Tensor) -> Chosen:
        """stay (m,): the indices of those that stayed, best first;  pixels: δ of coordinates;  off (n,): δ of scores. Distance:
        what coordinates or scores are off by at least, for (a), (b) and (c) to hold pair by pair."""
        own = batched_nms(self.boxes, self.scores, self.group, self.t)
        other = len(set(own.tolist()) ^ set(stay.tolist()))
        stays = torch.zeros(len(self.boxes), dtype=torch.bool)
        stays[stay] = True
        if int(stays.sum()) < len(stay):
            return Chosen(len(self.boxes), other, LARGEST)  # twice the same
        before, behind = stay[:-1], stay[1:]
        rises = (self.scores[behind] - self.scores[before]).clamp(min=0) / (off[before] + off[behind])
        furthest = worst(rises)
        for group in self.group.unique():
            here = self.group == group
            kept, gone = stay[here[stay]], (here & ~stays).nonzero()[:, 0]
            too_near = self._over(kept, kept, pixels).fill_diagonal_(-1)  # (m, m)
            furthest = max(furthest, worst(too_near.clamp(min=0)))
            if len(gone):
                lacks = (-self._over(kept, gone, pixels)).clamp(min=0)  # (m, n − m): what the overlap lacks
                better = (self.scores[gone][None] - self.scores[kept][:, None]).clamp(min=0)
                better = better / (off[gone][None] + off[kept][:, None])
                furthest = max(furthest, worst(torch.maximum(lacks, better).amin(0)) if len(kept) else LARGEST)
        return Chosen(len(self.boxes), other, furthest)

    def _over(self, a: Tensor, b: Tensor, pixels: float) -> Tensor:
        """(|a|, |b|) multiples of δ = `pixels` that coordinates are off by, at least, where pairs overlap by exactly t.

        If every coordinate is off by δ, I is by at most δ min(P, P′), an area by δ P, and I − tU = (1 + t) I − t (A + A′) by at
        most δ (P + P′) (1 + 3t) / 2, to first order. Boxes that lie apart by more than 2δ have no overlap to be off.
        """
        one, two = self.boxes[a].double()[:, None], self.boxes[b].double()[None]
        sides, others = (box[..., 2:] - box[..., :2] for box in (one, two))
        shared = torch.minimum(one[..., 2:], two[..., 2:]) - torch.maximum(one[..., :2], two[..., :2])
        intersection = shared.clamp(min=0).prod(-1)
        union = sides.prod(-1) + others.prod(-1) - intersection
        around = 2 * (sides.sum(-1) + others.sum(-1)).clamp(min=torch.finfo(union.dtype).tiny)
        over = (intersection - self.t * union) / (around * (1 + 3 * self.t) / 2) / pixels
        return torch.where(shared.amin(-1) < -2 * pixels, -LARGEST, over)


def worst(distances: Tensor) -> float:
    """The largest; the largest float in the place of infinity and NaN; 0 of none."""
    if not distances.numel():
        return 0.0
    return max(0.0, float(distances.double().nan_to_num(nan=LARGEST, posinf=LARGEST).max()))


def _both(scores: Tensor, off: float) -> Tensor:
    """What two scores may be off by together."""
    size = scores.abs().max() if scores.numel() else scores.new_ones(())
    return 2 * off * size.clamp(min=torch.finfo(scores.dtype).tiny)
