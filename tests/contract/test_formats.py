"""A number format that the house has never seen works wherever one is asked for: searched, refined, simulated, stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from erq_export.calibrate.search import Search, of_product, of_rows, of_tensor
from erq_export.calibrate.solve.rounding import flip, paper
from erq_export.contract.formats.affine import AffineRow, FreeRow, Grid, asymmetric_grid
from erq_export.contract.formats.format import Format, joined
from erq_export.contract.formats.logarithmic import LogGrid, LogRow

Make = Callable[[Tensor, Tensor], Format]


@dataclass(frozen=True, kw_only=True)
class Float8:
    """FP8 (E4M3) times a scale, as a newcomer would write it: the 8-bit float itself is the code."""

    scale: Tensor

    def quantize(self, x: Tensor) -> Tensor:
        return (x / self.scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)

    def dequantize(self, q: Tensor) -> Tensor:
        return q * self.scale

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.dequantize(self.quantize(x))

    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(x.dtype)
        points = points[points.isfinite()].unique()  # sorted; ±0 are one
        steps = (x / self.scale).clamp(-448, 448)
        up = points[torch.searchsorted(points, steps).clamp_max(len(points) - 1)]
        down = points[torch.searchsorted(points, steps, right=True).sub(1).clamp_min(0)]
        return self.dequantize(down), self.dequantize(up), self.quantize(x) == up

    def map(self, change: Callable[[Tensor], Tensor]) -> "Float8":
        return Float8(scale=change(self.scale))

    def stored(self) -> dict[str, Tensor]:
        return {"scale": self.scale}


def affine(lo: Tensor, hi: Tensor) -> Grid:
    return asymmetric_grid(lo.clamp_max(0), hi.clamp_min(0), 4)


def logarithmic(_lo: Tensor, hi: Tensor) -> LogGrid:
    return LogGrid(scale=hi, bits=4)


def float8(lo: Tensor, hi: Tensor) -> Float8:
    return Float8(scale=torch.maximum(lo.abs(), hi.abs()) / 448)


EVERY = pytest.mark.parametrize("make", [affine, logarithmic, float8])


def values(*shape: int, make: Make, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.exp() if make is logarithmic else x


@EVERY
def test_every_value_goes_to_the_nearer_of_its_neighbours_and_stays_there(make: Make) -> None:
    """Nearer in the logarithm for the logarithmic grid, where 0 is nearer to nothing."""
    x = values(1000, make=make)
    grid = make(x.min(), x.max())
    down, up, is_up = grid.neighbours(x)
    x_hat = grid.fake_quantize(x)
    assert torch.equal(torch.where(is_up, up, down), x_hat)
    inside = (down != up) & (down != 0)
    assert float(inside.double().mean()) > 0.8
    assert bool(((down <= x) & (x <= up))[inside].all())
    distance = torch.log if make is logarithmic else torch.clone
    own, other = ((distance(p) - distance(x)).abs() for p in (x_hat, torch.where(is_up, down, up)))
    assert bool((own <= other * (1 + 1e-12))[inside].all())
    assert torch.equal(grid.fake_quantize(x_hat), x_hat)


@EVERY
def test_the_search_takes_the_least_error_on_any_format(make: Make) -> None:
    """One grid for all values, one a row, and by the product; in pieces, against everything at once."""
    x, V = values(6, 400, make=make), values(400, 3, make=make, seed=1)
    shares = (0.2, 0.5, 1.0)
    for error, shape in ((of_tensor, ()), (of_rows, (6, 1)), (of_product, ())):
        lo, hi = x.aminmax(dim=1, keepdim=True) if error is of_rows else x.aminmax()
        grids = [make(lo * share, hi * share) for share in shares]
        search = Search(candidates=grids, error=error)
        for part in x.split([100, 300], 1) if error is of_rows else x.split([2, 4]):
            search.add(part, V)
        errors = torch.stack([error(grid, x, V) for grid in grids])
        assert errors.shape == (3, *shape)
        best = search.best()
        assert best.stored()["scale"].shape == shape
        assert torch.allclose(error(best, x, V), errors.amin(0), rtol=1e-12)
        assert len(errors.argmin(0).unique()) == 1 or error is of_rows
        assert bool((errors.amax(0) > 1.01 * errors.amin(0)).all())


@EVERY
@pytest.mark.parametrize("rule", [flip, paper])
def test_rounding_refinement_never_loses_on_any_format(make: Make, rule: Callable[..., Tensor]) -> None:
    """Every entry ends on one of its neighbours; the loss d M dᵀ never rises, and falls somewhere."""
    W, X = (
        values(20, 12, make=make),
        torch.randn(40, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    )
    M, (lo, hi) = X.T @ X, W.aminmax(dim=1, keepdim=True)
    grid = make(lo, hi)
    down, up, _ = grid.neighbours(W)
    refined = rule(W, grid, M, 100)
    assert bool(((refined == down) | (refined == up)).all())
    before, after = (((Q - W) @ M * (Q - W)).sum(1) for Q in (grid.fake_quantize(W), refined))
    assert bool((after <= before + 1e-9).all())
    assert float(after.sum()) < float(before.sum())


@EVERY
def test_grids_join_tensor_by_tensor(make: Make) -> None:
    x = values(5, 50, make=make)
    lo, hi = x.aminmax(dim=1, keepdim=True)
    whole, parts = make(lo, hi), [make(lo[rows], hi[rows]) for rows in (slice(0, 2), slice(2, 5))]
    assert torch.equal(joined(parts, torch.cat).fake_quantize(x), whole.fake_quantize(x))
    part, same = whole.map(lambda t: t[3:]).fake_quantize(x[3:]), whole.fake_quantize(x)[3:]
    assert torch.allclose(part, same, rtol=1e-15, atol=0)  # vectorised powers differ in their last bit from single ones


@pytest.mark.parametrize(
    ("grid", "row"),
    [
        (Grid(scale=torch.tensor(0.1), qmin=torch.tensor(-3.0), qmax=torch.tensor(12.0)), AffineRow(qmin=-3, qmax=12)),
        (
            Grid(scale=torch.tensor(0.1), qmin=torch.tensor(-2.5), qmax=torch.tensor(12.5)),
            FreeRow(qmin=-2.5, qmax=12.5),
        ),
        (LogGrid(scale=torch.tensor(0.1), bits=4), LogRow(bits=4)),
    ],
)
def test_a_grid_comes_back_from_its_row_and_its_tensors(
    grid: Grid | LogGrid, row: AffineRow | FreeRow | LogRow
) -> None:
    assert (grid.row() if isinstance(row, AffineRow) and isinstance(grid, Grid) else grid.free_row()) == row
    tensors: Mapping[str, Tensor] = grid.stored()
    again = row.grid(tensors)
    x = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.fake_quantize(x), grid.fake_quantize(x))


def test_codes_that_are_no_integers_have_no_row_that_a_target_can_run() -> None:
    with pytest.raises(ValueError, match="no integers"):
        Grid(scale=torch.tensor(1.0), qmin=torch.tensor(0.5), qmax=torch.tensor(15.5)).row()
