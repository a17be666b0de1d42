"""How far a choice is from a tie: 0 for one's own, rounding for what equals leave open, more for any other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, nms

from erq_export.contract.floor import LARGEST
from erq_export.contract.formats.affine import per_tensor_grid
from erq_export.validate.parity.whole import ties
from erq_export.validate.parity.whole.ties import Suppression

GRID = per_tensor_grid({"scale": torch.tensor(0.1)}, -8, 7)
OFF = 1e-5
SEEDS = st.integers(0, 2**16)


def boxes(seed: int, n: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that lie on each other, scores of few values, two groups."""
    draw = torch.Generator().manual_seed(seed)
    corner = 40 * torch.rand(n, 2, generator=draw)
    size = 5 + 25 * torch.rand(n, 2, generator=draw)
    scores = torch.randint(1, 9, (n,), generator=draw) / 10
    return torch.cat((corner, corner + size), 1), scores, torch.randint(0, 2, (n,), generator=draw)


def suppressed(seed: int, t: float) -> tuple[Suppression, Tensor]:
    found, scores, group = boxes(seed)
    return Suppression(found, scores, group, t), batched_nms(found, scores, group, t)


def judged(suppression: Suppression, stay: Tensor) -> ties.Chosen:
    """With next to no rounding."""
    return suppression.chosen(stay, pixels=1e-6, off=torch.full_like(suppression.scores, 1e-9))


def in_order(suppression: Suppression, some: Tensor) -> Tensor:
    return some[suppression.scores[some].argsort(descending=True, stable=True)]


def test_own_codes_are_no_tie_and_neighbours_are_one_only_where_the_number_lies_halfway() -> None:
    x = torch.tensor([0.3, 0.35, 0.36, 5.0])
    own = GRID.quantize(x)
    assert ties.rounded(GRID, x, own, off=OFF) == ties.Chosen(4, 0, 0.0)
    halfway = ties.rounded(GRID, x, own + torch.tensor([0, 1 if own[1] == 3 else -1, 0, 0]), off=OFF)
    assert (halfway.n, halfway.other) == (4, 1)
    assert halfway.furthest < 0.1
    tenth = ties.rounded(GRID, x, own - torch.tensor([0, 0, 1, 0]), off=OFF)
    assert tenth.furthest == pytest.approx(0.1 / 8 / OFF, rel=1e-3)  # of a step, as a share of the largest code
    assert (
        ties.rounded(GRID, x, own - torch.tensor([0, 0, 0, 1]), off=1.0).furthest > 5
    )  # x lies beyond the end of the grid
    assert ties.rounded(GRID, x, own + torch.tensor([2, 0, 0, 0]), off=OFF).furthest > 100


def test_a_code_beyond_the_grid_is_no_tie_wherever_the_number_lies() -> None:
    x = torch.tensor([0.75])
    assert ties.rounded(GRID, x, torch.tensor([8.0]), off=1.0).furthest == LARGEST


def test_what_is_not_a_number_is_furthest() -> None:
    x = torch.tensor([0.3, torch.nan])
    assert ties.rounded(GRID, x, torch.tensor([3.0, 0.0]), off=OFF).furthest == LARGEST
    assert ties.worst(torch.tensor([torch.inf])) == LARGEST
    assert ties.worst(torch.tensor([])) == 0


def test_any_of_equals_may_be_among_the_best_and_no_other() -> None:
    scores = torch.tensor([5.0, 3.0, 3.0, 3.0, 1.0])
    for other in (1, 2, 3):
        assert ties.among_best(scores, torch.tensor([other, 0]), off=OFF).furthest == 0
    two = 2 / 5 / (2 * OFF)  # as a share of the largest, and both may be off
    assert ties.among_best(scores, torch.tensor([0, 4]), off=OFF).furthest == pytest.approx(two)
    assert ties.among_best(scores, torch.tensor([1, 2]), off=OFF).furthest == pytest.approx(two)  # 5 is left out
    assert ties.among_best(scores, torch.tensor([1, 1]), off=OFF).furthest == LARGEST
    assert ties.among_best(scores, torch.arange(5), off=OFF) == ties.Chosen(5, 0, 0.0)


def test_the_largest_of_a_row_the_scores_above_and_the_level_of_a_box() -> None:
    rows = torch.tensor([[1.0, 1.0, 0.5], [0.0, 2.0, 1.0]])
    assert ties.largest(rows, torch.tensor([0, 1]), off=OFF).furthest == 0
    assert ties.largest(rows, torch.tensor([1, 1]), off=OFF).furthest == 0
    assert ties.largest(rows, torch.tensor([2, 1]), off=OFF).furthest == pytest.approx(0.25 / (2 * OFF))
    assert ties.largest(rows[:0], torch.tensor([], dtype=torch.long), off=OFF) == ties.Chosen(0, 0, 0.0)
    scores, least = torch.tensor([0.04, 0.05, 0.06]), 0.05
    assert ties.above(scores, least, scores > least, off=OFF) == ties.Chosen(3, 0, 0.0)
    assert ties.above(scores, least, torch.tensor([False, True, True]), off=OFF).furthest < 0.01
    assert ties.above(scores, least, torch.tensor([False] * 3), off=OFF).furthest == pytest.approx(0.01 / OFF)
    between = torch.tensor([-3.0, 0.5, 1.0, 7.0])
    assert ties.on_levels(between, torch.tensor([0, 0, 1, 3]), 4, off=OFF) == ties.Chosen(4, 0, 0.0)
    assert ties.on_levels(between, torch.tensor([0, 0, 0, 3]), 4, off=OFF) == ties.Chosen(4, 1, 0.0)  # on the border
    assert ties.on_levels(between, torch.tensor([0, 0, 1, 2]), 4, off=1.0).furthest == 4
    assert ties.on_levels(between, torch.tensor([1, 0, 1, 3]), 4, off=1.0).furthest == 4


@given(SEEDS, st.sampled_from([0.3, 0.5, 0.7]))
@settings(max_examples=50, deadline=None)
def test_what_greedy_suppression_leaves_is_what_it_leaves(seed: int, t: float) -> None:
    suppression, stay = suppressed(seed, t)
    assert judged(suppression, stay) == ties.Chosen(60, 0, 0.0)


@given(SEEDS, st.sampled_from([0.3, 0.5, 0.7]), SEEDS)
@settings(max_examples=50, deadline=None)
def test_one_box_more_one_less_and_one_twice_are_no_such_list(seed: int, t: float, which: int) -> None:
    """(a) and (b): one more overlaps with a better one, one less overlaps with none. Within a millionth of a pixel none of the
    boxes is a tie."""
    suppression, stay = suppressed(seed, t)
    gone = torch.tensor([i for i in range(60) if i not in set(stay.tolist())])
    i = which % len(stay)
    assert judged(suppression, torch.cat((stay[:i], stay[i + 1 :]))).furthest > 1
    assert judged(suppression, torch.cat((stay, stay[i : i + 1]))).furthest == LARGEST
    if len(gone):
        assert judged(suppression, in_order(suppression, torch.cat((stay, gone[which % len(gone)][None])))).furthest > 1


def test_a_better_box_does_not_go_for_a_worse_one() -> None:
    """(b): it overlaps, but is better than what it went for."""
    found = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10]])
    scores, group = torch.tensor([0.9, 0.6]), torch.zeros(2, dtype=torch.long)
    suppression = Suppression(found, scores, group, 0.5)
    assert judged(suppression, torch.tensor([0])) == ties.Chosen(2, 0, 0.0)
    wrong = suppression.chosen(torch.tensor([1]), pixels=1e-6, off=torch.tensor([0.1, 0.05]))
    assert wrong.furthest == pytest.approx(0.3 / 0.15)


def test_the_better_box_comes_first() -> None:
    """(c)"""
    found = torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10], [80, 0, 90, 10]])
    scores, group = torch.tensor([0.9, 0.6, 0.5]), torch.zeros(3, dtype=torch.long)
    suppression = Suppression(found, scores, group, 0.5)
    wrong = suppression.chosen(torch.tensor([0, 2, 1]), pixels=1e-6, off=torch.full((3,), 0.01))
    assert wrong.furthest == pytest.approx(0.1 / 0.02)


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_every_order_of_equals_gives_a_list_that_is_a_tie(seed: int) -> None:
    """Greedy suppression of the same boxes, those of equal scores in another order: another list, and 0 from a tie."""
    found, scores, group = boxes(seed)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    again = shuffled[batched_nms(found[shuffled], scores[shuffled], group[shuffled], 0.5)]
    assert judged(Suppression(found, scores, group, 0.5), again).furthest == 0


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_boxes_and_scores_that_are_off_by_so_much_give_a_list_within_it(seed: int) -> None:
    """The bound in `_over`, to first order."""
    found, scores, group = boxes(seed)
    draw, t = torch.Generator().manual_seed(seed), 0.5
    pixels, score = 0.2, 0.02
    moved = found + pixels * (2 * torch.rand(found.shape, generator=draw) - 1)
    scored = scores + score * (2 * torch.rand(scores.shape, generator=draw) - 1)
    stay = batched_nms(moved, scored, group, t)
    chosen = Suppression(found, scores, group, t).chosen(stay, pixels=pixels, off=torch.full_like(scores, score))
    assert chosen.furthest <= 1.1


def test_nothing_and_boxes_without_area_are_suppressed_as_torchvision_does() -> None:
    found = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [5, 5, 9, 9]])
    scores, group = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.long)
    stay = nms(found, scores, 0.5)
    assert judged(Suppression(found, scores, group, 0.5), stay).furthest == 0
    assert judged(Suppression(found[:0], scores[:0], group[:0], 0.5), group[:0]) == ties.Chosen(0, 0, 0.0)
    assert judged(Suppression(found, scores, group, 0.5), group[:0]).furthest == LARGEST


def test_small_boxes_that_lie_apart_are_no_reason_to_go() -> None:
    """However little rounding would make their areas equal: there is no overlap that could be off."""
    found = torch.tensor([[0.0, 0, 1e-3, 1e-3], [500, 0, 500.001, 1e-3]])
    scores, group = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.long)
    gone = Suppression(found, scores, group, 0.5).chosen(group[:1], pixels=0.01, off=torch.full((2,), 0.2))
    assert gone.furthest > 1e6
