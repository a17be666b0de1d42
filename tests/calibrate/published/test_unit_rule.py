"""The unit rule against a literal version that goes on as the published code does."""

import pytest
import torch
from rounding_cases import case, exact_case, loss
from torch import Tensor

from erq_export.calibrate.published.unit_rule import unit
from erq_export.calibrate.solve.rounding import paper
from erq_export.contract.formats.affine import Grid


def literal(W: Tensor, grid: Grid, M: Tensor, limit: int) -> Tensor:
    """docs/method.md, "Unit rule" with k = 1: all rows every time, refused ones again, until all are refused at once or
    T is reached."""
    down, up, is_up = grid.neighbours(W)
    d_lo, d_hi = down - W, up - W
    d = torch.where(is_up, d_hi, d_lo)
    for _ in range(limit):
        refused = 0
        g = 2 * d @ M
        for i in range(len(W)):
            score = [abs(float(g[i, j])) if float(g[i, j] * d[i, j]) > 0 else 0.0 for j in range(W.shape[1])]
            j = score.index(max(score))
            trial = d[i].clone()
            if score[j] > 0:
                v = float(d[i, j] - g[i, j])
                near_hi = abs(float(d_hi[i, j]) - v) <= abs(v - float(d_lo[i, j]))
                trial[j] = d_hi[i, j] if near_hi else d_lo[i, j]
            before, now = float(d[i] @ M @ d[i]), float(trial @ M @ trial)
            if now > before:
                refused += 1
            else:
                d[i] = trial
        if refused == len(W):
            break
    return d + W


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_it_ends_where_the_published_loop_ends(scale: float, limit: int, clipped: bool) -> None:
    """1e-12: the literal version adds W back to the error."""
    for seed in range(3):
        W, grid, M = case(seed=seed, clipped=clipped)
        assert torch.allclose(unit(W, grid, M * scale, limit), literal(W, grid, M * scale, limit), rtol=0, atol=1e-12)


def test_it_ends_there_in_exact_arithmetic_too() -> None:
    """Where gains and distances can be equal, ties are decided alike."""
    W, grid, M = exact_case()
    assert torch.equal(unit(W, grid, M / 64, 100), literal(W, grid, M / 64, 100))


def test_the_loss_never_rises_and_small_inputs_make_it_idle() -> None:
    """What the paper's rule does not know: its flips are those of any scale of the inputs."""
    W, grid, M = case(h=16)
    down, up, is_up = grid.neighbours(W)
    nearest = torch.where(is_up, up, down)
    rounded = unit(W, grid, M, 100)
    assert bool((loss(W, rounded, M) <= loss(W, nearest, M) + 1e-12).all())
    assert not torch.equal(rounded, nearest)
    assert torch.equal(unit(W, grid, M * 1e-4, 100), nearest)
    assert torch.equal(paper(W, grid, M * 1e-4, 100), paper(W, grid, M, 100))
