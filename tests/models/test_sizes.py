"""A model that does not fit is refused with both numbers before it is built; one that fits is counted as it is."""

import time
from typing import Any

import pytest
import torch
from tiny_swin import SWIN_ARGS, TINY_SWIN, tiny_swin
from tiny_vit import TINY, TINY_ARGS, tiny_vit

from erq_export.contract.errors import MachineError, SpecError
from erq_export.models import sizes
from erq_export.models.names import architecture
from erq_export.models.sizes import LargestTensor, check_size


@pytest.mark.parametrize(
    ("name", "args"),
    [
        (TINY, {"img_size": 100_000}),
        (TINY, {"num_classes": 10**9, "embed_dim": 3072}),
        (TINY, {"depth": 10**6}),
        (TINY, {"embed_dim": 999_999}),
        (TINY, {"embed_dim": 10**6, "num_heads": 1, "mlp_ratio": 1000}),
        (TINY, {"patch_size": 1, "img_size": 4000}),
        (TINY_SWIN, {"img_size": 10**6}),
        (TINY_SWIN, {"depths": (2, 2, 10**6, 2)}),
        (TINY_SWIN, {"embed_dim": 10**6, "num_heads": (1, 2, 4, 8)}),
        (TINY_SWIN, {"img_size": 10**6, "patch_size": 1, "window_size": 4096, "always_partition": True}),
    ],
    ids=str,
)
def test_a_model_larger_than_memory_is_refused_at_once(name: str, args: dict[str, Any]) -> None:
    """Memory of a computer is at most some terabytes; each of these needs more, or 64 GiB where the test says so."""
    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("erq_export.contract.memory.available_memory", lambda: 2**36)
        with pytest.raises(MachineError, match=r"memory are needed, 64\.0 GiB are free|more than 2⁶³ bytes") as caught:
            check_size(name, args)
    assert time.monotonic() - start < 10
    assert caught.value.exit_code == 3
    assert next(iter(args)) in caught.value.problem


@pytest.mark.parametrize("loaded", [(TINY, TINY_ARGS), (TINY_SWIN, SWIN_ARGS)], ids=["vit", "swin"])
def test_the_bytes_needed_are_those_of_the_model_and_of_its_largest_tensor(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From both sides: with as much as is needed it passes, with a byte less it does not."""
    name, args = loaded
    model = architecture(name, args)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    prepared = (tiny_vit if name == TINY else tiny_swin)()
    with LargestTensor() as largest, torch.no_grad():
        prepared.model(torch.zeros(1, *prepared.identity.preprocess.input_size))
    needed = weights + 2 * largest.n_bytes
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: needed)
    check_size(name, args)
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: needed - 1)
    with pytest.raises(MachineError, match=f"{needed:,} bytes"):
        check_size(name, args)


@pytest.mark.parametrize("depth", [3, 7])
def test_blocks_that_are_left_out_count_like_the_others(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(sizes, "require_memory", lambda n, *_args, **_kw: asked.append(n))
    check_size(TINY, TINY_ARGS | {"depth": depth})
    model = architecture(TINY, TINY_ARGS | {"depth": depth})
    assert asked[0] == sum(p.numel() for p in model.parameters()) * 4


def test_a_model_too_deep_to_calibrate_is_refused_unbuilt() -> None:
    small = {"embed_dim": 2, "num_heads": 1, "img_size": 16, "num_classes": 2}
    start = time.monotonic()
    with pytest.raises(SpecError, match="100000 blocks"):
        check_size(TINY, small | {"depth": 100_000})
    assert time.monotonic() - start < 5
    check_size(TINY, small | {"depth": sizes.DEEPEST})


def test_nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 TiB are said to be free, so the model of 1 TiB passes; building it would end this process."""
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: 10 * 2**40)
    check_size(TINY, {"embed_dim": 99_999 // 3 * 3, "depth": 2})
