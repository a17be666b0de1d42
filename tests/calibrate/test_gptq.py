"""GPTQ by substitution in one factor is the published recursion, and does what it was published for."""

import operator

import pytest
import torch
from layer_problem import problem, solved
from layer_rows import Rows, layer_rows, row_grid
from torch import Tensor

from erq_export.calibrate.methods.gptq import GptqOptions
from erq_export.calibrate.solve.gptq import ORDERS, by_activation, factor, quantize_in_turn
from erq_export.contract.errors import SpecError
from erq_export.contract.formats.affine import Grid, asymmetric_grid
from erq_export.contract.records import choices, hints

K = 24
GPTQ_ORDERS = choices(hints(GptqOptions)["order"])
SEEDS = pytest.mark.parametrize("seed", range(5))


def layer(seed: int = 0, *, k: int = K, n: int = 16) -> tuple[Tensor, Tensor, Grid]:
    """W (n, k), G (k, k) of correlated quantized inputs, a 3-bit grid per row."""
    rows = layer_rows(seed=seed, k=k, n=n)
    W = rows.W[:, :-1]
    return W, rows.moments.G[:k, :k], row_grid(W, 3)


def loss(W: Tensor, q: Tensor, grid: Grid, G: Tensor) -> float:
    """tr(δ G δᵀ) = Σ‖δ x̂‖²."""
    delta = W - grid.dequantize(q)
    return float(((delta @ G) * delta).sum())


def published(W: Tensor, H: Tensor, grid: Grid) -> Tensor:
    """Optimal brain quantization in natural order, as it is printed: an explicit inverse, updated column by column.

    w_R ← w_R − (w_j − ŵ_j)/[H⁻¹]_jj [H⁻¹]_jR, then H⁻¹ ← H⁻¹ − [H⁻¹]_:j [H⁻¹]_j: / [H⁻¹]_jj without row and column j.
    """
    W, inverse = W.clone(), torch.linalg.inv(H)
    q = torch.empty_like(W)
    for j in range(W.shape[1]):
        q[:, j] = grid.quantize(W[:, j : j + 1])[:, 0]
        error = (W[:, j] - grid.dequantize(q[:, j : j + 1])[:, 0]) / inverse[0, 0]
        W[:, j + 1 :] -= torch.outer(error, inverse[0, 1:])
        inverse = (inverse - torch.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    return q


@SEEDS
@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
def test_it_is_the_published_recursion(seed: int, damping: float) -> None:
    """Integers equal: both recursions err by 1e-9 of a grid step, and no weight lies that near to a tie."""
    W, G, grid = layer(seed)
    H = 2 * (G + damping * G.diagonal().mean() * torch.eye(K, dtype=torch.float64))
    q = quantize_in_turn(W, factor(G, damping), grid, block=128)
    assert torch.equal(q, published(W, H, grid))
    assert not torch.equal(q, grid.quantize(W))


@SEEDS
def test_the_factor_s_inverse_is_the_cholesky_factor_of_the_inverse(seed: int) -> None:
    """What GPTQ's code takes from cholesky(H⁻¹, upper), to 1e-11 of its largest entry: A has a condition below 1e4."""
    _, G, _ = layer(seed)
    U = factor(G, 0.01)
    A = G + 0.01 * G.diagonal().mean() * torch.eye(K, dtype=torch.float64)
    assert torch.equal(U, U.triu())
    of_inverse = torch.linalg.cholesky(torch.linalg.inv(A), upper=True)
    assert float((U @ U.T - A).abs().max() / A.max()) < 1e-14
    assert float((torch.linalg.inv(U) - of_inverse).abs().max() / of_inverse.max()) < 1e-11
    assert float(torch.linalg.cond(A)) < 1e4


@SEEDS
@pytest.mark.parametrize("block", [1, 2, 5, 8, K - 1, K])
def test_blocks_do_not_change_the_result(seed: int, block: int) -> None:
    W, G, grid = layer(seed)
    U = factor(G, 0.01)
    assert torch.equal(quantize_in_turn(W, U, grid, block=block), quantize_in_turn(W, U, grid, block=10 * K))


@SEEDS
def test_rows_do_not_see_each_other(seed: int) -> None:
    """Put in another order or solved alone, a row gets the integers it gets among all."""
    W, G, grid = layer(seed)
    U = factor(G, 0.01)
    whole = quantize_in_turn(W, U, grid, block=8)
    order = torch.randperm(len(W), generator=torch.Generator().manual_seed(seed))
    for rows in (order, *order.split(1)):
        own = grid.map(operator.itemgetter(rows))
        assert torch.equal(quantize_in_turn(W[rows], U, own, block=8), whole[rows])


@SEEDS
@pytest.mark.parametrize("order", GPTQ_ORDERS)
def test_correlated_inputs_are_made_use_of(seed: int, order: str) -> None:
    """Strictly below round to nearest, on the same grid. The fifth that is asked for is what makes it a method."""
    posed = problem(layer_rows(seed=seed))
    G = posed.moments.G[:K, :K]
    gptq, rtn = solved("gptq", posed, order=order), solved("rtn", posed)
    assert torch.equal(gptq.grid.scale, rtn.grid.scale)
    assert loss(posed.weight, gptq.q, gptq.grid, G) < 0.8 * loss(posed.weight, rtn.q, rtn.grid, G)


@SEEDS
def test_uncorrelated_inputs_leave_nothing_to_gain(seed: int) -> None:
    W, G, grid = layer(seed)
    q = quantize_in_turn(W, factor(torch.diag(G.diagonal()), 0.01), grid, block=8)
    assert torch.equal(q, grid.quantize(W))


@SEEDS
def test_damping_leads_to_round_to_nearest(seed: int) -> None:
    """At 1e9 times the mean diagonal a compensation is below 1e-8 of a weight; at a tenth it still decides."""
    W, G, grid = layer(seed)
    nearest = grid.quantize(W)
    away = [int((quantize_in_turn(W, factor(G, d), grid, block=8) != nearest).sum()) for d in (0.1, 10.0, 1e9)]
    assert away[0] > away[1] >= away[2] == 0


@SEEDS
def test_the_last_column_pays_what_is_owed_exactly(seed: int) -> None:
    """The last column stands at its optimum given all others: half a grid step off, unless the grid ends there."""
    W, G, grid = layer(seed)
    damped = G + 0.01 * G.diagonal().mean() * torch.eye(K, dtype=torch.float64)
    q = quantize_in_turn(W, factor(G, 0.01), grid, block=8)
    delta = W - grid.dequantize(q)
    optimum = W[:, -1] + delta[:, :-1] @ damped[:-1, -1] / damped[-1, -1]  # gradient of tr(δ A δᵀ) in w_k zero
    assert torch.equal(q[:, -1:], grid.quantize(optimum[:, None]))


def test_orders_of_the_options_are_those_there_are() -> None:
    assert tuple(ORDERS) == GPTQ_ORDERS


def test_act_order_is_the_natural_order_of_relabelled_columns() -> None:
    """Relabel the inputs by decreasing strength, solve in natural order, put the names back."""
    rows = layer_rows(seed=1)
    order = rows.X_hat.square().sum(0).argsort(descending=True)
    assert not torch.equal(order, torch.arange(K))
    with_bias = torch.cat([order, torch.tensor([K])])
    relabelled = Rows(X=rows.X[:, order], X_hat=rows.X_hat[:, order], W=rows.W[:, with_bias])
    acted, plain = (solved("gptq", problem(rows), order=o).q for o in ("activation", "natural"))
    assert torch.equal(acted[:, order], solved("gptq", problem(relabelled)).q)
    assert not torch.equal(acted, plain)


def test_act_order_keeps_the_order_of_equals() -> None:
    assert by_activation(torch.tensor([1.0, 3.0, 1.0, 3.0, 0.0])).tolist() == [1, 3, 0, 2, 4]


@pytest.mark.parametrize("order", GPTQ_ORDERS)
def test_a_dead_input_rounds_to_nearest_and_changes_nothing(order: str) -> None:
    """Against the layer without that column, at the same λ: the mean of the diagonal has one more entry, a zero."""
    rows, dead = layer_rows(seed=2), 7
    alive = [j for j in range(K) if j != dead]
    X, X_hat = rows.X.clone(), rows.X_hat.clone()
    X[:, dead] = X_hat[:, dead] = 0
    posed = problem(Rows(X=X, X_hat=X_hat, W=rows.W))
    solution = solved("gptq", posed, order=order)
    W, G = posed.weight[:, alive], posed.moments.G[alive][:, alive]
    by = ORDERS[order](G.diagonal())
    U = factor(G[by][:, by], 0.01 * len(alive) / K)
    assert torch.equal(solution.q[:, dead], solution.grid.quantize(posed.weight)[:, dead])
    assert torch.equal(solution.q[:, alive][:, by], quantize_in_turn(W[:, by], U, solution.grid, block=8))


def test_a_layer_that_saw_only_zeros_rounds_to_nearest() -> None:
    rows = layer_rows()
    posed = problem(Rows(X=torch.zeros_like(rows.X), X_hat=torch.zeros_like(rows.X), W=rows.W))
    assert torch.equal(solved("gptq", posed).q, solved("rtn", posed).q)


def test_fewer_rows_than_columns_are_no_obstacle() -> None:
    """The head: 10 rows, 24 columns; G has rank 10."""
    posed = problem(layer_rows(n_rows=10))
    gptq, rtn = solved("gptq", posed), solved("rtn", posed)
    G = posed.moments.G[:K, :K]
    assert loss(posed.weight, gptq.q, gptq.grid, G) < loss(posed.weight, rtn.q, rtn.grid, G)


def test_too_little_damping_is_refused_with_a_way_out() -> None:
    twins = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(SpecError, match="not positive definite") as caught:
        factor(twins, 1e-20)  # below the last bit of 1
    assert "-O damping=" in caught.value.fix


@pytest.mark.parametrize("targets", [("onnx",), ("onnx", "tensorrt-rtx")])
@pytest.mark.parametrize("order", GPTQ_ORDERS)
def test_a_solution_is_integers_on_the_control_s_grid(order: str, targets: tuple[str, ...]) -> None:
    rows = layer_rows()
    posed = problem(rows, targets=targets)
    before = rows.W.clone(), posed.moments.G.clone()
    solution = solved("gptq", posed, order=order)
    control = solved("rtn", posed).grid
    for name in ("scale", "qmin", "qmax"):
        assert torch.equal(getattr(solution.grid, name), getattr(control, name))
    assert torch.equal(solution.q, torch.round(solution.q))
    assert bool(((solution.q >= control.qmin) & (solution.q <= control.qmax)).all())
    on_grid = control.dequantize(solution.q)
    assert torch.equal(control.fake_quantize(on_grid), on_grid)
    assert torch.equal(solution.bias, posed.bias)
    for was, now in zip(before, (rows.W, posed.moments.G), strict=True):
        assert torch.equal(was, now)


def test_a_weight_pushed_beyond_the_grid_stops_at_its_end() -> None:
    """Two equal inputs: the second weight would owe a whole step too many, and the grid of the row has no such point."""
    grid = asymmetric_grid(torch.zeros(1, 1), torch.full((1, 1), 3.0), 2)  # 0, 1, 2, 3
    W = torch.tensor([[2.4, 3.0]], dtype=torch.float64)
    G = torch.ones(2, 2, dtype=torch.float64)
    q = quantize_in_turn(W, factor(G, 1e-9), grid, block=1)
    assert q.tolist() == [[2.0, 3.0]]  # 3.4 is what would make up for it
    roomy = torch.tensor([[2.4, 1.3]], dtype=torch.float64)
    assert quantize_in_turn(roomy, factor(G, 1e-9), grid, block=1).tolist() == [[2.0, 2.0]]  # 1.7, not 1.3
