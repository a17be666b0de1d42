"""Moments of half the images: which images, and that nothing is counted twice or left out."""

import pytest
import torch
from tiny_swin import tiny_swin
from tiny_vit import tiny_vit

from erq_export.calibrate.halves import HalvedMoments, Heavy, first_half, heavy_tokens
from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.methods.gptq import GptqOptions
from erq_export.calibrate.moments import Moments


@pytest.mark.parametrize("sizes", [[1], [2], [5], [8], [8, 1], [8, 8], [8, 8, 3], [8] * 4, [8] * 5 + [2], [8] * 32])
def test_halves_hold_half_of_the_images(sizes: list[int]) -> None:
    """To one image, or to one chunk where chunks stay whole; every part of a chunk is from its start."""
    first = first_half(sizes)
    assert all(0 <= n <= size for n, size in zip(first, sizes, strict=True))
    off = abs(2 * sum(first) - sum(sizes))
    assert off <= (1 if len(sizes) < 4 else max(sizes))
    if len(sizes) >= 4:  # whole chunks cost no second product
        assert all(n in (0, size) for n, size in zip(first, sizes, strict=True))


@pytest.mark.parametrize("n_chunks", [1, 3, 4, 7])
def test_the_halves_are_all_rows_and_the_whole_is_what_it_was(n_chunks: int) -> None:
    """The whole has every bit of sums without halves; each half is the sums over its own rows, to float64's rounding."""
    generator = torch.Generator().manual_seed(n_chunks)
    images, tokens, k = 8, 5, 6
    chunks = [torch.randn(images * tokens, k, generator=generator) for _ in range(n_chunks)]
    halved, plain, first, second = (
        HalvedMoments.zero(k),
        *(Moments.zero(k, bias=True) for _ in range(3)),
    )
    for x, n in zip(chunks, first_half([images] * n_chunks), strict=True):
        x_hat = (4 * x).round() / 4
        halved.add(x, x_hat, n / images)
        plain.add(x, x_hat)
        for part, rows in ((first, slice(0, n * tokens)), (second, slice(n * tokens, None))):
            if len(x[rows]):
                part.add(x[rows], x_hat[rows])
    assert halved.halves is not None
    for name in ("G", "D", "C"):
        assert torch.equal(getattr(halved.whole, name), getattr(plain, name))
        for found, wanted in zip(halved.halves, (first, second), strict=True):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-4)
            assert found.n_rows == wanted.n_rows


def test_one_image_has_no_halves() -> None:
    halved = HalvedMoments.zero(3)
    x = torch.randn(5, 3)
    halved.add(x, x, first_half([1])[0] / 1)
    assert halved.halves is None


def test_a_token_that_counts_three_times_is_three_rows() -> None:
    """In every sum and in both halves; rows are counted as they are."""
    generator = torch.Generator().manual_seed(2)
    images, tokens, k = 6, 5, 4
    x = torch.randn(images * tokens, k, generator=generator)
    x_hat = (4 * x).round() / 4
    heavy = Heavy(n=2, tokens=tokens, times=3.0)
    found, wanted = HalvedMoments.zero(k), HalvedMoments.zero(k)
    found.add(x, x_hat, 0.5, heavy)
    again = [t.reshape(images, tokens, k) for t in (x, x_hat)]
    more = [torch.cat([t, t[:, :2], t[:, :2]], 1).flatten(0, 1) for t in again]
    wanted.add(more[0], more[1], 0.5)
    assert found.halves is not None
    assert wanted.halves is not None
    for mine, theirs in zip((found.whole, *found.halves), (wanted.whole, *wanted.halves), strict=True):
        for name in ("G", "D", "C"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)
    assert (found.whole.n_rows, wanted.whole.n_rows) == (images * tokens, images * (tokens + 4))


def test_which_tokens_count_for_more() -> None:
    """The class token, and what stands beside it, where the output is read from it alone; √T times."""
    erq, h = ErqOptions(), torch.zeros(3, 17, 32)
    embed, *blocks, head = tiny_vit().stages
    assert [heavy_tokens(stage, h, erq) for stage in (embed, head)] == [None, None]
    assert [heavy_tokens(stage, h, erq) for stage in blocks] == [Heavy(n=1, tokens=17, times=17**0.5)] * 2
    assert heavy_tokens(blocks[0], h, ErqOptions(class_weight=1.0)) is None
    assert heavy_tokens(blocks[0], h, GptqOptions()) is None  # as its authors have it
    for loaded in (tiny_vit(global_pool="avg"), tiny_swin()):
        assert not any(stage.leading for stage in loaded.stages)
