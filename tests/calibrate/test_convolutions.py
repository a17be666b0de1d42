"""Convolutions go through the same calibration as Linears: as the matrix and the rows that they are."""

from typing import Any

import pytest
import torch
from asked import asked
from torch import Tensor, nn

from erq_export.calibrate import states
from erq_export.calibrate.capture import values, walk
from erq_export.calibrate.known_ranges import KnownRanges
from erq_export.calibrate.layer import layer_problem
from erq_export.calibrate.linears import layer_of
from erq_export.calibrate.ranges import input_grids
from erq_export.calibrate.scheme import deployed_layer
from erq_export.calibrate.setting import Setting
from erq_export.contract.errors import DataError
from erq_export.contract.formats.affine import Grid
from erq_export.contract.kernel import Kernel
from erq_export.contract.part import install
from erq_export.contract.quantized import QuantConv2d, QuantizedConv
from erq_export.contract.sites import Site, Stage

METHODS = ("erq", "gptq", "repq", "rtn")
IMAGES = 3


class Levels(nn.Module):
    """A convolution that sees two sizes of one image, as an RPN does; behind it one that sees nothing of dark images."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        small = self.shared(nn.functional.max_pool2d(x, 2)).relu()
        seen = self.shared(x).relu()
        seen = seen[seen.flatten(1).mean(1) > 0.1]
        out: Tensor = self.head(seen).sum() + small.sum()
        return out.expand(len(x), 1)


@pytest.fixture
def levels() -> nn.Module:
    torch.manual_seed(0)
    return Levels().eval().requires_grad_(False)


def stage_of(model: nn.Module, *, varied: bool = True) -> Stage:
    sites = [(path, model.get_submodule(path)) for path in ("shared", "head")]
    return Stage(
        name="levels",
        forward=model,
        sites=tuple(Site(path=p, role="conv", kernel=Kernel.of(m)) for p, m in sites if isinstance(m, nn.Conv2d)),
        varied=varied,
    )


def images(*, light: float = 1.0) -> list[Tensor]:
    noise = torch.randn(IMAGES, 4, 8, 10, generator=torch.Generator().manual_seed(1))
    return list((noise + light).split(1))


def setting(method: str = "erq", bits: str = "w4a4", **options: Any) -> Setting:
    return Setting.of(asked(bits, ("onnx", "tensorrt-rtx"), method=method, **options))


def found(model: nn.Module, how: Setting) -> tuple[dict[str, Grid], dict[str, Any]]:
    stage = stage_of(model)
    grids = input_grids(model, stage, images(), how, KnownRanges())
    moments, _ = states.stage_moments(model, stage, images(), grids, how.options)
    return grids, {site.path: layer_problem(model, moments[site.path], site, how) for site in stage.sites}


def test_every_call_of_every_image_is_in_the_sums(levels: nn.Module) -> None:
    _, problems = found(levels, setting())
    assert problems["shared"].moments.n_rows == IMAGES * (8 * 10 + 4 * 5)
    assert problems["head"].moments.n_rows == IMAGES * 8 * 10
    first, second = problems["shared"].halves
    assert (first.n_rows, second.n_rows) == (2 * 100, 1 * 100)


def test_sums_are_those_of_the_rows_of_the_quantized_image(levels: nn.Module) -> None:
    """A border of zeros is quantized to itself, so rows of x̂ are quantized rows of x."""
    grids, problems = found(levels, setting())
    kernel = Kernel.of(levels.get_submodule("shared"))  # type: ignore[arg-type]
    inputs = [grids["shared"].fake_quantize(y) for x in images() for y in (nn.functional.max_pool2d(x, 2), x)]
    rows = torch.cat([r for x in inputs for r in kernel.rows(x)]).double()
    G = rows.T @ rows
    assert torch.allclose(problems["shared"].moments.G[:-1, :-1], G, rtol=1e-5, atol=1e-4)


def test_ranges_are_the_percentiles_of_every_value_of_every_level(levels: nn.Module) -> None:
    """Counted first, for the calls of an image differ in size. A grid reaches as far as one of the candidates."""
    how, seen = setting(bits="w4a8"), []
    walk(levels, stage_of(levels), images(), lambda path, x: seen.append((path, x)), rows=values)
    grids, _ = found(levels, how)
    for path, grid in grids.items():
        x = torch.cat([x.flatten() for p, x in seen if p == path]).double()
        ends = {float(x.quantile(p)) for p in (0.999, 0.9999, 0.99999, 1.0)}
        reach = max(abs(float(grid.scale * q)) for q in grid.codes)
        assert min(abs(reach - end) for end in ends) <= 0.05 * max(ends)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", ["w3a4", "w4a4", "w8a8"])
def test_it_is_solved_as_the_linear_of_its_rows(levels: nn.Module, method: str, bits: str) -> None:
    """The same integers as a Linear of the matrix, given the rows as tokens."""
    how = setting(method, bits)
    grids, problems = found(levels, how)
    solution = how.solve(problems["shared"])
    conv = levels.get_submodule("shared")
    assert isinstance(conv, nn.Conv2d)
    linear = nn.Linear(36, 6).requires_grad_(False)
    linear.weight.copy_(conv.weight.flatten(1))
    linear.bias.copy_(conv.bias)  # type: ignore[arg-type]
    kernel, site = Kernel.of(conv), Site(path="0", role="conv")
    stage = Stage(name="linear", forward=nn.Sequential(linear), sites=(site,))
    rows = [torch.cat([torch.cat(list(kernel.rows(y))) for y in (nn.functional.max_pool2d(x, 2), x)]) for x in images()]
    moments, _ = states.stage_moments(
        nn.Sequential(linear), stage, [r[None] for r in rows], {"0": grids["shared"]}, how.options
    )
    same = how.solve(layer_problem(nn.Sequential(linear), moments["0"], site, how))
    assert torch.equal(solution.q, same.q)
    assert torch.allclose(solution.bias, same.bias, atol=1e-6)


def test_erq_makes_less_error_than_rounding_to_nearest(levels: nn.Module) -> None:
    """In the convolution's own output, with its part of the bundle in its place."""
    x = torch.cat(images())
    errors = {}
    for method in ("erq", "rtn"):
        model = Levels().eval().requires_grad_(False)
        model.load_state_dict(levels.state_dict())
        how = setting(method, "w3a4")
        grids, problems = found(model, how)
        site = stage_of(model).sites[0]
        exact = layer_of(model, site)(x)
        part = deployed_layer(how.solve(problems["shared"]), site, grids, how)
        assert isinstance(part, QuantizedConv)
        install(model, "shared", part)
        quantized = model.get_submodule("shared")
        assert isinstance(quantized, QuantConv2d)
        errors[method] = float((quantized(x) - exact).square().sum())
    assert errors["erq"] < 0.9 * errors["rtn"]


def test_a_layer_that_no_image_reaches_is_named(levels: nn.Module) -> None:
    levels.get_submodule("shared").bias.fill_(-100)  # type: ignore[union-attr, operator]
    with pytest.raises(DataError, match="gives head anything") as refused:
        input_grids(levels, stage_of(levels), images(light=-5), setting(), KnownRanges())
    assert "other images" in refused.value.fix


def test_images_of_a_varied_stage_come_one_by_one(levels: nn.Module) -> None:
    """Which half a row belongs to is told by its image."""
    with pytest.raises(ValueError, match="one by one"):
        states.stage_moments(levels, stage_of(levels), [torch.cat(images())], {}, setting().options)


def test_a_site_with_another_kernel_is_no_match(levels: nn.Module) -> None:
    site = Site(path="head", role="conv", kernel=Kernel(channels=6, window=(3, 3)))
    with pytest.raises(TypeError, match="head"):
        layer_of(levels, site)
