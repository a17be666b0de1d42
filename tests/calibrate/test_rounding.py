"""Rounding refinement only goes down, ends where no flip helps, and never beats the optimum it approximates."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding_cases import case, exact_case, loss
from torch import Tensor

from erq_export.calibrate.solve.rounding import REFINEMENTS, flip, paper
from erq_export.contract.formats.affine import Grid

RULES = {"flip": flip, "paper": paper}
UNBOUNDED = 10_000


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_weight_takes_one_of_its_two_neighbours(seed: int, clipped: bool, rule: str) -> None:
    W, grid, M = case(seed=seed, clipped=clipped)
    rounded = RULES[rule](W, grid, M, UNBOUNDED)
    down, up, _ = grid.neighbours(W)
    assert bool(((rounded == down) | (rounded == up)).all())
    assert torch.equal(grid.fake_quantize(rounded), rounded)
    assert not torch.equal(rounded, grid.fake_quantize(W))  # some rows did flip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_never_worse_than_nearest_and_better_on_correlated_inputs(seed: int, rule: str) -> None:
    W, grid, M = case(h=24, seed=seed)
    before, after = loss(W, grid.fake_quantize(W), M), loss(W, RULES[rule](W, grid, M, UNBOUNDED), M)
    assert bool((after <= before * (1 + 1e-12)).all())  # the running gradient is rounded once per flip
    assert float(after.sum()) < 0.7 * float(before.sum())


@pytest.mark.parametrize("rule", RULES)
def test_more_flips_are_never_worse(rule: str) -> None:
    """The loss after 0, 1, 2 … flips falls row by row; 0 flips are round to nearest."""
    W, grid, M = case(h=24)
    results = [RULES[rule](W, grid, M, limit) for limit in range(40)]
    losses = torch.stack([loss(W, r, M) for r in results])  # (flips, n)
    assert torch.equal(results[0], grid.fake_quantize(W))
    assert bool((losses[1:] <= losses[:-1] * (1 + 1e-12)).all())
    assert float(losses[-1].sum()) < float(losses[1].sum()) < float(losses[0].sum())


@pytest.mark.parametrize("rule", RULES)
def test_the_limit_bounds_the_flips_of_a_row(rule: str) -> None:
    W, grid, M = case(h=90)
    for limit in (0, 1, 2, 5):
        n_flipped = (RULES[rule](W, grid, M, limit) != grid.fake_quantize(W)).sum(1)
        assert int(n_flipped.max()) == limit


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_single_flip_is_left_that_helps(seed: int, clipped: bool) -> None:
    W, grid, M = case(h=16, seed=seed, clipped=clipped)
    rounded = flip(W, grid, M, UNBOUNDED)
    down, up, _ = grid.neighbours(W)
    reached = loss(W, rounded, M)
    for j in range(W.shape[1]):
        other = rounded.clone()
        other[:, j] = torch.where(rounded == up, down, up)[:, j]
        assert bool((loss(W, other, M) >= reached - 1e-12).all())


@pytest.mark.parametrize(("h", "n"), [(1, 40), (4, 40), (8, 40), (10, 12)])
def test_against_the_optimum_of_all_roundings(h: int, n: int) -> None:
    """2^h candidates a row. `flip` is never below the optimum (else the loss is wrong), and reaches it in most rows."""
    W, grid, M = case(h=h, n=n)
    down, up, _ = grid.neighbours(W)
    choices = torch.tensor(list(itertools.product([False, True], repeat=h)))  # (2^h, h)
    optimum = torch.stack([loss(W, torch.where(c, up, down), M) for c in choices]).min(0).values
    found, near = loss(W, flip(W, grid, M, UNBOUNDED), M), loss(W, grid.fake_quantize(W), M)
    assert bool((found >= optimum - 1e-12).all())
    optimal = found <= optimum + 1e-12
    assert float(optimal.double().mean()) >= 0.5
    if h > 1:
        assert float(optimal.double().mean()) > float((near <= optimum + 1e-12).double().mean())
        assert float(found.sum()) < float(near.sum())


@pytest.mark.parametrize("rule", REFINEMENTS)
def test_what_lies_beyond_the_grid_cannot_flip(rule: str) -> None:
    W, grid, M = case(clipped=True)
    rounded = REFINEMENTS[rule](W, grid, M, UNBOUNDED)
    below, above = ((grid.scale.double() * q).expand_as(W) for q in (grid.qmin, grid.qmax))
    under, over = below > W, above < W
    assert 10 < int(under.sum()) + int(over.sum()) < W.numel() / 2
    assert torch.equal(rounded[under], below[under])
    assert torch.equal(rounded[over], above[over])


def literal_flip(w: Tensor, scale: float, qmin: float, qmax: float, M: Tensor, limit: int) -> Tensor:
    """Section 9.1 for one row, every loss computed from scratch."""
    down, up = (scale * torch.clamp(r(w / scale), qmin, qmax) for r in (torch.floor, torch.ceil))
    q = scale * torch.clamp(torch.round(w / scale), qmin, qmax)
    for _ in range(limit):
        losses = []
        for j in range(len(w)):
            other = q.clone()
            other[j] = down[j] + up[j] - q[j]
            losses.append(float((other - w) @ M @ (other - w)))
        best = min(range(len(w)), key=losses.__getitem__)
        if losses[best] >= float((q - w) @ M @ (q - w)):
            break
        q[best] = down[best] + up[best] - q[best]
    return q


def literal_paper(w: Tensor, scale: float, qmin: float, qmax: float, M: Tensor, limit: int) -> Tensor:
    """Section 9.2 for one row, k = 1; entries whose neighbours coincide have no other candidate and no score."""
    down, up = (scale * torch.clamp(r(w / scale), qmin, qmax) for r in (torch.floor, torch.ceil))
    q = scale * torch.clamp(torch.round(w / scale), qmin, qmax)
    for _ in range(limit):
        d = q - w
        loss_before, gradient = float(d @ M @ d), 2 * d @ M
        scores = [
            abs(float(gradient[j])) if gradient[j] * d[j] > 0 and down[j] != up[j] else 0.0 for j in range(len(w))
        ]
        best = max(range(len(w)), key=scores.__getitem__)
        if scores[best] == 0:
            break
        other = q.clone()
        other[best] = down[best] + up[best] - q[best]
        if float((other - w) @ M @ (other - w)) > loss_before:
            break
        q = other
    return q


@pytest.mark.parametrize("literal", [literal_flip, literal_paper])
@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("seed", range(3))
def test_a_rule_is_its_specification_read_aloud(seed: int, limit: int, literal: object) -> None:
    assert callable(literal)
    W, grid, M = exact_case(seed=seed)
    rule = flip if literal is literal_flip else paper
    expected = torch.stack([literal(w, 0.5, -6.0, 9.0, M, limit) for w in W])
    rounded = rule(W, grid, M, limit)
    assert torch.equal(rounded, expected)
    assert not torch.equal(rounded, grid.fake_quantize(W))


def test_the_two_rules_differ() -> None:
    """And the exact gain, which does not stop at its first doubt, is the better one overall."""
    W, grid, M = case(h=24)
    exact, published = (loss(W, rule(W, grid, M, UNBOUNDED), M).sum() for rule in (flip, paper))
    assert float(exact) < float(published)


@pytest.mark.parametrize("rule", RULES)
def test_rows_are_independent(rule: str) -> None:
    """Neither their order nor how many go together changes a bit (exact arithmetic: no product can round otherwise)."""
    W, grid, M = exact_case(n=67)
    whole = RULES[rule](W, grid, M, 100)
    order = torch.randperm(len(W), generator=torch.Generator().manual_seed(0))
    assert torch.equal(RULES[rule](W[order], grid.map(lambda t: t[order]), M, 100), whole[order])
    for size in (1, 20):
        pieces = zip(W.split(size), grid.scale.split(size), grid.qmin.split(size), grid.qmax.split(size), strict=True)
        parts = [RULES[rule](w, Grid(scale=s, qmin=lo, qmax=hi), M, 100) for w, s, lo, hi in pieces]
        assert torch.equal(torch.cat(parts), whole)


@given(seed=st.integers(0, 200), permutation=st.permutations(range(8)))
def test_relabelling_the_inputs_relabels_the_result(seed: int, permutation: list[int]) -> None:
    W, grid, M = case(seed=seed, n=6)
    relabelled = flip(W[:, permutation], grid, M[permutation][:, permutation], UNBOUNDED)
    assert torch.equal(relabelled, flip(W, grid, M, UNBOUNDED)[:, permutation])


def test_independent_inputs_are_best_rounded_to_nearest() -> None:
    """A diagonal M: no entry can make up for another."""
    W, grid, _ = case(h=10)
    M = torch.diag(torch.arange(1.0, 11.0, dtype=torch.float64))
    for rule in REFINEMENTS.values():
        assert torch.equal(rule(W, grid, M, UNBOUNDED), grid.fake_quantize(W))


def test_an_equal_loss_is_a_success_for_the_paper_and_no_gain_for_us() -> None:
    """Half a step from both neighbours: the published rule goes to and fro until its limit
    (docs/method.md, "Published rounding rule")."""
    one = torch.ones(1, 1)
    grid = Grid(scale=one, qmin=-4 * one, qmax=3 * one)
    W, M = torch.tensor([[0.5]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert [float(paper(W, grid, M, limit)) for limit in range(5)] == [0, 1, 0, 1, 0]
    assert [float(flip(W, grid, M, limit)) for limit in range(5)] == [0, 0, 0, 0, 0]


def test_two_equal_inputs_share_their_rounding_error() -> None:
    """x₁ = x₂: 0.4 + 0.4 steps are best rounded to 1 + 0, which nearest cannot see."""
    one = torch.ones(1, 1)
    grid = Grid(scale=one, qmin=-4 * one, qmax=3 * one)
    W = torch.tensor([[0.4, 0.4]], dtype=torch.float64)
    M = torch.ones(2, 2, dtype=torch.float64)
    assert grid.quantize(W).sum() == 0
    assert flip(W, grid, M, 100).sum() == 1
    assert paper(W, grid, M, 100).sum() == 1


def test_weights_on_the_grid_stay() -> None:
    W, grid, M = case()
    on_grid = grid.dequantize(grid.quantize(W))
    for rule in REFINEMENTS.values():
        assert torch.equal(rule(on_grid, grid, M, UNBOUNDED), on_grid)
