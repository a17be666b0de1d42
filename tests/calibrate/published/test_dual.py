"""Dual uniform quantization against a version in loops, and in a layer that is solved, stored and run."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_swin import tiny_swin
from tiny_vit import calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import Tensor

from erq_export.calibrate.percentiles import WEIGHTS
from erq_export.calibrate.published.dual import ROWS_A_COLUMN, dual_grid, outlier_columns
from erq_export.calibrate.solve.weight_grid import weight_grid
from erq_export.contract.bundle import Bundle
from erq_export.contract.formats.affine import Grid
from erq_export.contract.simulated import SimulatedLinear
from erq_export.contract.targets import grid_rules
from erq_export.models.rebuild import reference_model

FREE = grid_rules(["reference"])
DUAL = {"targets": ("reference",), "dual": True, "rounding": "unit"}


def weight(n: int = 120, k: int = 40, *, seed: int = 0) -> Tensor:
    """A few columns are wider than the others; one row has no negative entry, one no positive, one is 0."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, k, generator=generator, dtype=torch.float64)
    W[:, [3, 17, 31]] *= 6
    W[0], W[1], W[2] = W[0].abs() + 0.1, -W[1].abs() - 0.1, 0
    return W


def literal_columns(W: Tensor) -> list[int]:
    """docs/method.md, "Dual uniform quantization", steps 1 and 2, row by row with NumPy."""
    marks = np.zeros(W.shape[1], dtype=int)
    for row in W.numpy():
        positive, negative = row[row > 0], row[row < 0]
        if len(positive):
            marks += row > np.quantile(positive, 0.99)
        if len(negative):
            marks += row < np.quantile(negative, 1 - 0.99)
    ranked = sorted(range(len(marks)), key=lambda j: (-marks[j], j))
    return sorted(j for j in ranked[: len(W) // 20] if marks[j])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "k"), [(120, 40), (19, 40), (60, 200), (400, 12)])
def test_the_outlier_columns_are_those_of_the_loops(n: int, k: int, seed: int) -> None:
    W = weight(n, max(k, 32), seed=seed)[:, -k:]
    columns = outlier_columns(W)
    expected = literal_columns(W)
    if len(expected) == k:  # one column stays outside
        assert len(columns) == k - 1
    else:
        assert columns.tolist() == expected
    if (n, k) == (120, 40):
        assert {3, 17, 31} <= set(columns.tolist())
        assert len(columns) == n // ROWS_A_COLUMN == 6


def test_each_group_has_the_grid_it_would_have_alone() -> None:
    W = weight()
    grid, columns = dual_grid(W, bits=4, rules=FREE)
    assert columns is not None
    rest = [j for j in range(W.shape[1]) if j not in columns.tolist()]
    for chosen in (columns.tolist(), rest):
        alone = weight_grid(W[:, chosen], bits=4, rules=FREE, percentiles=WEIGHTS["wide"])
        assert torch.equal(alone.fake_quantize(W[:, chosen]), grid.fake_quantize(W)[:, chosen])
    one = weight_grid(W, bits=4, rules=FREE)
    errors = [(g.fake_quantize(W) - W).square().sum() for g in (grid, one)]
    assert errors[0] < 0.5 * errors[1]


def test_few_rows_have_no_outliers_and_the_usual_grid() -> None:
    grid, columns = dual_grid(weight(19), bits=4, rules=FREE)
    assert columns is None
    assert grid.scale.shape == (19, 1)


def test_the_columns_of_a_grid() -> None:
    """A row's own grid is that of all its columns; else those columns'."""
    W = weight()
    grid, _ = dual_grid(W, bits=4, rules=FREE)
    part = slice(10, 20)
    assert torch.equal(grid.columns(part).fake_quantize(W[:, part]), grid.fake_quantize(W)[:, part])
    one = weight_grid(W, bits=4, rules=FREE)
    assert one.columns(part) is one


@pytest.mark.parametrize("rounding", ["unit", "paper", "flip", "none"])
def test_both_groups_are_on_their_grids_in_the_solved_layers(rounding: str) -> None:
    """Rounding what was solved changes nothing, in the model's own integers: every code lies in its group's range."""
    bundle = calibrated_bundle(tiny_vit(), random_images(), tiny_spec(**DUAL | {"rounding": rounding}))
    dual = {path: layer for path, layer in bundle.layers.items() if layer.outliers is not None}
    assert [path.rpartition(".")[2] for path in dual] == ["qkv", "fc1"] * 2
    for layer in dual.values():
        assert layer.outliers is not None
        n, k = layer.weight_q.shape
        assert 0 < len(layer.outliers.columns) <= n // 20
        qmin = layer.weight_qmin[:, None].float().expand(n, k).clone()
        qmin[:, layer.outliers.columns] = layer.outliers.qmin[:, None].float()
        grid = Grid(scale=layer.column_scales, qmin=qmin, qmax=qmin + 15)
        assert torch.equal(grid.quantize(layer.weight), layer.weight_q.float())
        assert not torch.equal(layer.outliers.scale, layer.weight_scale)


@pytest.mark.parametrize("tiny", [tiny_vit, tiny_swin], ids=["vit", "swin"])
def test_a_bundle_with_two_grids_comes_back(tiny: object, tmp_path: Path) -> None:
    loaded = tiny()  # type: ignore[operator]
    data = random_images(size=loaded.identity.preprocess.input_size[1])
    bundle = calibrated_bundle(loaded, data, tiny_spec(**DUAL))
    bundle.save(tmp_path)
    again = Bundle.load(tmp_path)
    for path, layer in bundle.layers.items():
        other = again.layers[path]
        assert (layer.outliers is None) == (other.outliers is None)
        assert torch.equal(other.weight, layer.weight)
        if layer.outliers is not None and other.outliers is not None:
            for name in ("columns", "scale", "qmin"):
                assert torch.equal(getattr(other.outliers, name), getattr(layer.outliers, name))
    with torch.no_grad():
        assert torch.equal(reference_model(again)(data.pixels), reference_model(bundle)(data.pixels))


def test_a_layer_computes_with_the_scales_of_its_columns() -> None:
    bundle = calibrated_bundle(tiny_vit(), random_images(), tiny_spec(**DUAL))
    layer = bundle.layers["blocks.0.attn.qkv"]
    assert layer.act is not None
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(4))
    assert torch.equal(SimulatedLinear("x", layer)(x), F.linear(layer.act.fake_quantize(x), layer.weight, layer.bias))
    for j in range(layer.weight.shape[1]):
        assert layer.outliers is not None
        scale = layer.outliers.scale if j in layer.outliers.columns.tolist() else layer.weight_scale
        assert torch.equal(layer.weight[:, j], layer.weight_q[:, j].float() * scale)
