"""The methods put their parts together as specified: ERQ's two steps share one layer, the control takes neither."""

import pytest
import torch
from layer_problem import RIDGE, problem, solved
from layer_rows import Rows, layer_rows

from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.methods.method import options_of
from erq_export.calibrate.solve.erq import ridges
from erq_export.calibrate.solve.problem import Solution
from erq_export.calibrate.solve.rounding import REFINEMENTS
from erq_export.calibrate.solve.weight_grid import weight_grid
from erq_export.contract.formats.affine import Grid
from erq_export.contract.sites import Role

PUBLISHED = ErqOptions(patch_factor=10.0, head_ridge=1.0)

ROLES: tuple[Role, ...] = ("patch", "qkv", "proj", "fc1", "fc2", "reduction", "head")


def error(rows: Rows, solution: Solution) -> float:
    """Σ‖Ŵ x̂ + b̂ − (W x + b)‖², from the rows."""
    return float(rows.error(torch.cat([solution.grid.dequantize(solution.q), solution.bias[:, None]], 1)))


def read_aloud(rows: Rows, for_inputs: float, for_weights: float, refinement: str) -> tuple[Grid, Rows]:
    """Sections 7 and 8 on stored rows, with an inverse for every system. Returns the grid, and rows with the final W."""
    X_tilde, eye = rows.X_tilde, torch.eye(rows.W.shape[1], dtype=torch.float64)
    residual = rows.outputs - X_tilde @ rows.W.T
    W = rows.W + (torch.linalg.inv(X_tilde.T @ X_tilde + for_inputs * eye) @ X_tilde.T @ residual).T
    grid = weight_grid(W[:, :-1], bits=3, rules=problem(rows).rules)
    m = 0
    while W.shape[1] - m > 1:
        middle = m + (W.shape[1] - m) // 2
        x_S, x_R = X_tilde[:, m:middle], X_tilde[:, middle:]
        rounded = REFINEMENTS[refinement](W[:, m:middle], grid, x_S.T @ x_S / len(X_tilde), 100)
        d = rounded - W[:, m:middle]
        W[:, m:middle] = rounded
        W[:, middle:] -= (
            d @ x_S.T @ x_R @ torch.linalg.inv(x_R.T @ x_R + for_weights * torch.eye(x_R.shape[1]).double())
        )
        m = middle
    return grid, Rows(X=rows.X, X_hat=rows.X_hat, W=W)


def test_the_ridge_of_each_role() -> None:
    """docs/method.md, "Ridge": 0.1 λ on sums; published, λ at the patch embedding, and 0.1 for the head's Aqer, not for its
    Wqer."""
    expected: dict[Role, tuple[float, float]] = {"patch": (1e4, 1e4), "head": (0.1, 1e3)}
    for role in ROLES:
        assert ridges(role, 1e4, PUBLISHED) == expected.get(role, (1e3, 1e3))
        assert ridges(role, 1e4, ErqOptions()) == (1e3, 1e3)


@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize("role", ["fc2", "head", "patch"])
@pytest.mark.parametrize("seed", range(2))
def test_erq_is_aqer_then_a_grid_then_wqer(seed: int, role: Role, refinement: str) -> None:
    """Integers equal, the bias to 1e-8: it has been through two solves of condition < 1e6 and every round's."""
    rows = layer_rows(seed=seed)
    solution = solved("erq", problem(rows, role), rounding=refinement, row_steps=0, head_ridge=1.0, patch_factor=10.0)
    grid, literal = read_aloud(rows, *ridges(role, RIDGE, PUBLISHED), refinement)
    for name in ("scale", "qmin", "qmax"):
        assert torch.equal(getattr(solution.grid, name), getattr(grid, name))
    assert torch.equal(solution.grid.dequantize(solution.q), literal.W[:, :-1])
    assert torch.allclose(solution.bias, literal.W[:, -1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_each_step_lowers_the_error(seed: int) -> None:
    """Round to nearest; ERQ told that its inputs are exact (so Wqer alone); ERQ; and ERQ without its bias."""
    rows = layer_rows(seed=seed)
    whole, blind = problem(rows), problem(rows)
    blind.moments.D.zero_()
    erq, wqer_only, rtn = solved("erq", whole), solved("erq", blind), solved("rtn", whole)
    published = solved("erq", whole, row_steps=0)
    without_bias = Solution(q=erq.q, grid=erq.grid, bias=whole.bias)
    assert error(rows, erq) < error(rows, published)
    assert error(rows, erq) < error(rows, wqer_only) < error(rows, rtn)
    assert error(rows, erq) < error(rows, without_bias)


@pytest.mark.parametrize("method", ["erq", "rtn"])
@pytest.mark.parametrize("targets", [("onnx",), ("onnx", "tensorrt-rtx")])
def test_a_solution_is_integers_on_its_grid(method: str, targets: tuple[str, ...]) -> None:
    rows = layer_rows()
    posed = problem(rows, targets=targets)
    before = rows.W.clone(), posed.moments.G.clone(), posed.moments.D.clone()
    solution = solved(method, posed)
    assert torch.equal(solution.q, torch.round(solution.q))
    assert bool(((solution.q >= solution.grid.qmin) & (solution.q <= solution.grid.qmax)).all())
    assert len((solution.q - solution.grid.qmin).unique()) == 8  # 3 bits, all in use
    for was, now in zip(before, (rows.W, posed.moments.G, posed.moments.D), strict=True):
        assert torch.equal(was, now)


def test_the_control_rounds_to_nearest_and_nothing_else() -> None:
    rows = layer_rows()
    posed = problem(rows)
    solution = solved("rtn", posed)
    assert torch.equal(solution.bias, posed.bias)
    assert torch.equal(solution.q, solution.grid.quantize(posed.weight))
    expected = weight_grid(posed.weight, bits=3, rules=posed.rules)
    assert torch.equal(solution.grid.dequantize(solution.q), expected.fake_quantize(posed.weight))


def test_only_erq_folds_layer_norms() -> None:
    for role in ROLES:
        assert [options_of(method, {}).folds(role) for method in ("erq", "rtn")] == [True, False]
