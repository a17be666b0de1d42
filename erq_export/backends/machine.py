"""Which CPU it ran on: its name and the instructions that decide how fast, and how exact, its integer products are."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
SUMS_OF_32_BITS = ("avx512_vnni", "avx_vnni", "amx_int8")
TELLING = ("avx2", "avx512f", *SUMS_OF_32_BITS, "asimddp", "i8mm")  # the last two are Arm's


def processor(cpuinfo: Path = CPUINFO) -> str:
    """Name and telling flags, "Xeon (avx2 avx512_vnni)", from Linux's /proc/cpuinfo; the platform's name elsewhere."""
    rows = _first_core(cpuinfo)
    name = rows.get("model name") or platform.processor() or platform.machine()
    present = _flags(rows)
    return f"{name} ({' '.join(f for f in TELLING if f in present) or 'no flags known'})"


def sums_may_saturate(cpuinfo: Path = CPUINFO) -> bool:
    """Whether ONNX Runtime may add pairs of uint8 · int8 products in 16 bits here: an x64 CPU without VNNI or AMX, and
    every CPU whose flags are not known. Source: docs/backends.md, "ONNX Runtime and VNNI"."""
    return not any(flag in _flags(_first_core(cpuinfo)) for flag in SUMS_OF_32_BITS)


def cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cpu_mhz(cpuinfo: Path = CPUINFO) -> tuple[float, ...]:
    """The clock of every core now, as Linux's /proc/cpuinfo tells it on x64; nothing elsewhere."""
    if not cpuinfo.is_file():
        return ()
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    return tuple(float(value) for key, _, value in lines if key.strip() == "cpu MHz")


def load_average() -> float | None:
    """Processes that wanted to run, mean of the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _first_core(cpuinfo: Path) -> dict[str, str]:
    rows: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            rows.setdefault(key.strip(), value.strip())
    return rows


def _flags(rows: dict[str, str]) -> list[str]:
    return rows.get("flags", rows.get("Features", "")).split()


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package, "none" where it is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
