"""Which CPU it ran on: its name and the instructions that decide how fast, and how exact, its integer products are."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Without VNNI or AMX, u8 × s8 products saturate in 16 bits (qdq.md 9.3). asimddp and i8mm are Arm's.
TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def processor(cpuinfo: Path = CPUINFO) -> str:
    """Name and telling flags, "Xeon (avx2 avx512_vnni)", from Linux's /proc/cpuinfo; the platform's name elsewhere."""
    rows: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            rows.setdefault(key.strip(), value.strip())
    name = rows.get("model name") or platform.processor() or platform.machine()
    present = rows.get("flags", rows.get("Features", "")).split()
    return f"{name} ({' '.join(f for f in TELLING if f in present) or 'no flags known'})"
