"""Input ranges by the error of the layer's output: what the search sums is that error where inputs' errors do not correlate."""

import pytest
import torch
from tiny_vit import random_images, tiny_spec, tiny_vit

from erq_export.calibrate.observers import CACHED_VALUES, Tails, activation_grid, groups, pieces, range_search
from erq_export.calibrate.percentiles import INPUTS
from erq_export.calibrate.search import Search, of_outputs, of_tensor
from erq_export.contract.targets import grid_rules

ONNX = grid_rules(["onnx"])


def test_it_is_the_output_s_error_where_each_row_errs_in_one_column() -> None:
    """Then nothing correlates: Σ‖W (x̂ − x)‖² to float64's rounding."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(5, 8, dtype=torch.float64, generator=generator)
    grid = activation_grid(torch.tensor(-4.0), torch.tensor(4.0), bits=4, rules=ONNX, per_channel=False)
    x = grid.fake_quantize(torch.randn(40, 8, generator=generator))
    x[torch.arange(40), torch.arange(40) % 8] += 0.3 * float(grid.scale)
    wanted = ((grid.fake_quantize(x) - x).double() @ W.T).square().sum()
    found = of_outputs(W.square().sum(0))(grid, x, None)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    assert float(wanted) > 0


@pytest.mark.parametrize("shape", [(CACHED_VALUES // 7 + 3, 7), (3, 5, 6), (1000, 1000)])
def test_pieces_are_whole_rows(shape: tuple[int, ...]) -> None:
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    found = list(pieces(x, per_channel=False))
    assert all(piece.shape[1] % shape[-1] == 0 for piece in found)
    assert torch.equal(torch.cat(found, 1), groups(x, per_channel=False))


def test_a_channel_that_counts_is_not_clipped() -> None:
    """One value in a thousand lies far out, in a channel of its own: the tensor's error clips it at 8 bits, the output's
    does once nothing reads that channel, and holds it where the weights of that channel are large."""
    x = torch.randn(20000, 16, generator=torch.Generator().manual_seed(1))
    x[::1000, 3] = 60.0

    def top(columns: torch.Tensor | None) -> float:
        tails = Tails.of(x.numel(), INPUTS["full"])
        tails.add(groups(x, per_channel=False))
        error = of_tensor if columns is None else of_outputs(columns)
        search: Search = range_search(tails, bits=8, rules=ONNX, per_channel=False, error=error)
        for piece in pieces(x, per_channel=False):
            search.add(piece)
        best = search.best()
        return float(best.scale * best.qmax)

    weights = torch.ones(16, dtype=torch.float64)
    weights[3] = 100.0
    assert top(weights) > 59
    weights[3] = 0.0
    assert top(weights) < 10


def test_folded_sites_keep_each_channel_s_own_error() -> None:
    """There a factor a channel changes no choice, so the grids of either option are the same."""
    from tiny_vit import calibrated_bundle

    by = {
        how: calibrated_bundle(tiny_vit(), random_images(), tiny_spec("w4a4", range_error=how)).layers
        for how in ("output", "input")
    }
    for path, layer in by["output"].items():
        if path.endswith(("qkv", "fc1", "attn.proj")):
            assert torch.equal(layer.act.scale, by["input"][path].act.scale)
