"""What NVIDIA's management library says of the GPUs now: clocks, power, temperature, and why clocks are held down.

Not yet run on a GPU.
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from erq_export.contract.bench import GpuState

T = TypeVar("T")
MILLI = 1e-3
# Bits of "current clocks event reasons", by the end of their names in NVML; an idle GPU is not throttled.
REASONS = {
    "SwPowerCap": "power cap",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "temperature",
    "HwThermalSlowdown": "temperature (hardware)",
    "HwPowerBrakeSlowdown": "power brake",
    "SyncBoost": "sync boost",
    "ApplicationsClocksSetting": "application clocks",
}


def gpu_states() -> tuple[GpuState, ...]:
    """Of every GPU; none where the package nvidia-ml-py or the driver is not there."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return ()
    except Exception as e:
        if not _is_refusal(e):
            raise
        return ()
    try:
        return tuple(_state(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount()))
    finally:
        nvml.nvmlShutdown()


def _state(nvml: Any, gpu: Any) -> GpuState:
    name = nvml.nvmlDeviceGetName(gpu)
    power = _figure(lambda: nvml.nvmlDeviceGetPowerUsage(gpu))
    return GpuState(
        name=name.decode() if isinstance(name, bytes) else str(name),
        sm_mhz=_figure(lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        memory_mhz=_figure(lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
        power_w=None if power is None else MILLI * power,
        temperature_c=_figure(lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
        throttled=_figure(lambda: _reasons(nvml, gpu)) or (),
    )


def _figure(ask: Callable[[], T]) -> T | None:
    """What the library answers; None where this GPU has no such figure, or does not tell it here."""
    try:
        return ask()
    except Exception as e:
        if not _is_refusal(e):
            raise
        return None


def _is_refusal(error: Exception) -> bool:
    """Is it an NVMLError, which only the package knows?"""
    return type(error).__module__.partition(".")[0] == "pynvml"


def _reasons(nvml: Any, gpu: Any) -> tuple[str, ...]:
    """NVML renamed "throttle" to "event"; the old names serve where the new ones are not there."""
    for word in ("Event", "Throttle"):
        ask = getattr(nvml, f"nvmlDeviceGetCurrentClocks{word}Reasons", None)
        if ask is not None:
            bits = ask(gpu)
            names = {end: f"nvmlClocks{word}Reason{end}" for end in REASONS}
            return tuple(REASONS[end] for end, name in names.items() if bits & getattr(nvml, name, 0))
    return ()
