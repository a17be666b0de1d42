"""A convolution is its matrix times its rows, whichever way they are cut into pieces."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from asked import asked
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from torch import Tensor, nn

from erq_export.contract.bundle_checks import check
from erq_export.contract.errors import DataError
from erq_export.contract.formats.affine import Grid
from erq_export.contract.kernel import Kernel, pixels
from erq_export.contract.quantized import QuantConv2d, QuantizedConv
from erq_export.contract.rows import ConvRow, LayerRow

KERNELS = {
    "1x1": Kernel(channels=5, window=(1, 1)),
    "3x3": Kernel(channels=5, window=(3, 3), padding=(1, 1)),
    "patches": Kernel(channels=3, window=(4, 4), stride=(4, 4)),
    "uneven": Kernel(channels=2, window=(3, 2), stride=(2, 1), padding=(2, 1)),
}
KINDS = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@KINDS
@pytest.mark.parametrize("at_once", [1, 30, 100, 8192])
def test_it_is_a_matrix_times_its_rows(kernel: Kernel, at_once: int) -> None:
    """In float64 to its last few bits, with pieces of one line, of some, of an image, of all."""
    x, weight, bias = noise(3, kernel.channels, 12, 8).double(), noise(7, kernel.columns).double(), noise(7).double()
    rows = torch.cat(list(kernel.rows(x, at_once=at_once)))
    y = F.conv2d(x, kernel.spread(weight), bias, stride=kernel.stride, padding=kernel.padding)
    high, wide = kernel.size(12, 8)
    assert tuple(y.shape) == (3, 7, high, wide)
    assert torch.allclose((rows @ weight.T + bias).reshape(3, high, wide, 7).movedim(-1, 1), y, rtol=1e-12, atol=1e-12)


@given(at_once=st.integers(1, 200), images=st.integers(1, 5), kind=st.sampled_from(list(KERNELS)))
def test_pieces_do_not_matter(at_once: int, images: int, kind: str) -> None:
    kernel = KERNELS[kind]
    x = noise(images, kernel.channels, 8, 12)
    high, wide = kernel.size(8, 12)
    pieces = list(kernel.rows(x, at_once=at_once))
    assert torch.equal(torch.cat(pieces), torch.cat(list(kernel.rows(x, at_once=10**6))))
    assert max(map(len, pieces)) <= max(at_once, wide)
    assert sum(map(len, pieces)) == images * high * wide


def test_pixels_are_channels_last() -> None:
    x = noise(2, 3, 4, 5)
    assert torch.equal(pixels(x)[4 * 5 + 7], x[1, :, 1, 2])


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
    ids=["groups", "gaps", "same", "reflect"],
)
def test_other_convolutions_are_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(TypeError, match="another kind"):
        Kernel.of(conv)


def layer(kernel: Kernel, *, low: int = -3) -> QuantizedConv:
    generator = torch.Generator().manual_seed(0)
    return QuantizedConv(
        weight_q=torch.randint(-5, 11, (6, kernel.columns), generator=generator).to(torch.int8),
        weight_scale=torch.rand(6, generator=generator) + 0.01,
        weight_qmin=torch.full((6,), -5, dtype=torch.int16),
        bias=torch.randn(6, generator=generator),
        act=Grid(scale=torch.tensor(0.25), qmin=torch.tensor(float(low)), qmax=torch.tensor(low + 15.0)),
        w_bits=4,
        a_bits=4,
        kernel=kernel,
    )


@KINDS
@pytest.mark.parametrize("low", [-15, -3, 0])
def test_it_computes_with_integers_and_its_border_is_the_zero_points_code(kernel: Kernel, low: int) -> None:
    """Sums of int64 products of codes, the border filled up with the code of zero, times both scales."""
    one, x = layer(kernel, low=low), noise(2, kernel.channels, 8, 12, seed=1)
    codes = one.act.quantize(x) - low  # uint8 codes, whose zero point is −low
    above, left = kernel.padding
    framed = F.pad(codes, (left, left, above, above), value=-low) + low
    sums = F.conv2d(framed.double(), kernel.spread(one.weight_q.double()), stride=kernel.stride)
    exact = sums * (one.act.scale * one.weight_scale).double()[:, None, None] + one.bias.double()[:, None, None]
    assert torch.allclose(QuantConv2d("x", one)(x).double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(sums, sums.round())


@pytest.mark.parametrize(
    "change",
    [
        {"window": (0, 3)},
        {"window": (10**6, 3)},
        {"stride": (0, 1)},
        {"padding": (-1, 0)},
        {"padding": (3, 3)},
        {"channels": 4},
        {"channels": -5},
    ],
    ids=str,
)
def test_a_bundle_with_an_impossible_kernel_is_refused(change: dict[str, Any]) -> None:
    one = layer(KERNELS["3x3"])
    tensors = {f"layer.neck.{name}": tensor for name, tensor in one.stored().items()}
    check(asked(), [LayerRow.of("neck", one, None)], [], tensors)
    other = replace(one, kernel=structs.replace(one.kernel, **change))
    with pytest.raises(DataError, match="neck has"):
        check(asked(), [LayerRow.of("neck", other, None)], [], tensors)


@KINDS
def test_a_row_of_the_bundle_gives_the_layer_back(kernel: Kernel) -> None:
    one = layer(kernel)
    row = LayerRow.of("neck.0", one, None)
    assert isinstance(row, ConvRow)
    back = row.part(one.stored())
    assert isinstance(back, QuantizedConv)
    assert (back.kernel, back.w_bits, back.a_bits, back.act.codes) == (kernel, 4, 4, one.act.codes)
    x = noise(1, kernel.channels, 8, 8)
    assert torch.equal(back.module("neck.0")(x), one.cpu().module("neck.0")(x))
