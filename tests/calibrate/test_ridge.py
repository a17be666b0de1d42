"""One factorisation serves every trailing block: each solve equals a direct one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_rows import layer_rows
from torch import Tensor

from erq_export.calibrate.solve.ridge import Ridge
from erq_export.calibrate.solve.wqer import halves
from erq_export.contract.errors import SpecError

EPS = 2.0**-53


def gram(k: int, seed: int = 0) -> Tensor:
    return layer_rows(k=k - 1, seed=seed).moments.G if k > 3 else torch.eye(k, dtype=torch.float64)


@pytest.mark.parametrize("k", [2, 3, 16, 25, 97])
@pytest.mark.parametrize("ridge", [0.1, 1e3])
def test_every_round_is_solved_as_if_factored_anew(k: int, ridge: float) -> None:
    """Cholesky and LU both lose the condition number times k eps; 10 for the constants."""
    G = gram(k)
    A = G + ridge * torch.eye(k, dtype=torch.float64)
    system = Ridge(G, ridge)
    blocks = [slice(0, k), *(R for _, R in halves(k))]
    for R in blocks:
        B = torch.randn(R.stop - R.start, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        direct = torch.linalg.solve(A[R, R], B).T
        tolerance = 10 * k * EPS * float(torch.linalg.cond(A))
        assert float((system.solve(B.T) - direct).norm()) <= tolerance * float(direct.norm())
    assert len(blocks) > 1


@given(k=st.integers(4, 40), start=st.integers(0, 39), seed=st.integers(0, 99))
def test_any_trailing_block_is_factored(k: int, start: int, seed: int) -> None:
    G, start = gram(k, seed), min(start, k - 1)
    A = (G + 10 * torch.eye(k, dtype=torch.float64))[start:, start:]
    X = torch.randn(k - start, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(
        Ridge(G, 10.0).solve((A @ X).T), X.T, rtol=0, atol=1e-9
    )  # condition below 1e4, entries about 1


@pytest.mark.parametrize("k", [2, 3, 25, 97])
@pytest.mark.parametrize("ridge", [0.1, 1e3])
def test_every_round_s_error_is_absorbed_as_if_factored_anew(k: int, ridge: float) -> None:
    """−d A_SR A_RR⁻¹ with a fresh solve of the small system; the same tolerance."""
    G = gram(k)
    A = G + ridge * torch.eye(k, dtype=torch.float64)
    system = Ridge(G, ridge)
    for S, R in halves(k):
        d = torch.randn(5, S.stop - S.start, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        direct = -torch.linalg.solve(A[R, R], A[R, S] @ d.T).T
        tolerance = 10 * k * EPS * float(torch.linalg.cond(A))
        scale = float(direct.norm()) + float(d.norm())  # where S and R hardly couple, d's own rounding is left
        assert float((system.absorb(d, S, R) - direct).norm()) <= tolerance * scale


def test_the_gram_matrix_is_left_alone() -> None:
    G = gram(16)
    before = G.clone()
    Ridge(G, 100.0)
    assert torch.equal(G, before)


@pytest.mark.parametrize(
    "G",
    [
        torch.zeros(4, 4, dtype=torch.float64),
        torch.ones(4, 4, dtype=torch.float64),  # rank 1, all pivots exact
        torch.full((4, 4), torch.nan, dtype=torch.float64),
        -torch.eye(4, dtype=torch.float64),
    ],
    ids=["zero", "rank one", "nan", "negative"],
)
def test_what_cannot_be_factored_says_what_to_type(G: Tensor) -> None:
    with pytest.raises(SpecError, match="not positive definite") as caught:
        Ridge(G, 0.0)
    assert "-O ridge" in caught.value.fix
    assert caught.value.exit_code == 2


def test_a_ridge_makes_any_gram_matrix_solvable() -> None:
    G = torch.ones(4, 4, dtype=torch.float64)
    B = torch.ones(1, 4, dtype=torch.float64)
    assert torch.allclose(Ridge(G, 1.0).solve(B), B / 5)  # (11ᵀ + I) 1 = 5·1
