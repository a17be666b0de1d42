"""The driver is asked for GPUs, and its refusal means none."""

import ctypes
from typing import Any

import pytest
import torch

from erq_export.backends.cuda_driver import cuda_device_count


def test_gpus_are_counted_as_torch_counts_them() -> None:
    assert cuda_device_count() == torch.cuda.device_count()


@pytest.mark.parametrize(("status", "count"), [(0, 3), (100, 0)])
def test_the_driver_decides(status: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuInit(self, flags: int) -> int:
            return status

        def cuDeviceGetCount(self, pointer: Any) -> int:
            pointer._obj.value = 3
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    assert cuda_device_count() == count
