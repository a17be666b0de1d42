"""NVIDIA's management library, with one of our own: what is read of a GPU, under its new names and its old ones."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from erq_export.backends.nvml import REASONS, gpu_states


class NVMLError(Exception):
    """As the package has it."""


NVMLError.__module__ = "pynvml"


def library(word: str, bits: int, **changes: Any) -> SimpleNamespace:
    """`word`: Event in newer packages, Throttle in older ones."""
    flags = {f"nvmlClocks{word}Reason{end}": 1 << i for i, end in enumerate(REASONS)}
    calls = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetName": lambda _: b"a GPU",
        "nvmlDeviceGetClockInfo": lambda _, which: {1: 1500, 2: 9000}[which],
        "nvmlDeviceGetPowerUsage": lambda _: 250_500,
        "nvmlDeviceGetTemperature": lambda *_: 71,
        f"nvmlDeviceGetCurrentClocks{word}Reasons": lambda _: bits,
    }
    constants = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
    return SimpleNamespace(**flags | calls | constants | changes)


@pytest.mark.parametrize("word", ["Event", "Throttle"])
def test_a_gpu_is_read(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library(word, 0b101))
    (gpu,) = gpu_states()
    assert (gpu.name, gpu.sm_mhz, gpu.memory_mhz, gpu.temperature_c) == ("a GPU", 1500, 9000, 71)
    assert gpu.power_w == pytest.approx(250.5)
    assert gpu.throttled == ("power cap", "temperature")


def test_a_gpu_that_runs_freely_is_not_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library("Event", 1 << 30))  # another reason: idle
    assert gpu_states()[0].throttled == ()


@pytest.mark.parametrize(
    ("call", "figure"),
    [
        ("nvmlDeviceGetClockInfo", "sm_mhz"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
    ],
)
def test_a_figure_that_a_gpu_does_not_tell_is_none_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch, call: str, figure: str
) -> None:
    def not_supported(*_: Any) -> None:
        raise NVMLError("Not Supported")

    monkeypatch.setitem(sys.modules, "pynvml", library("Event", 0b1, **{call: not_supported}))
    (gpu,) = gpu_states()
    assert getattr(gpu, figure) is None
    told = {"sm_mhz", "power_w", "temperature_c"} - {figure}
    assert all(getattr(gpu, name) is not None for name in told)
    assert (gpu.name, gpu.throttled) == ("a GPU", ("power cap",))


def test_without_package_or_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise NVMLError("no driver")

    monkeypatch.setitem(sys.modules, "pynvml", library("Event", 0, nvmlInit=no_driver))
    assert gpu_states() == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_states() == ()


def test_another_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(sys.modules, "pynvml", library("Event", 0, nvmlInit=broken))
    with pytest.raises(ZeroDivisionError):
        gpu_states()


@pytest.mark.parametrize("end", REASONS)
def test_the_names_are_the_packages(end: str) -> None:
    nvml = pytest.importorskip("pynvml")
    assert any(hasattr(nvml, f"nvmlClocks{word}Reason{end}") for word in ("Event", "Throttle"))
