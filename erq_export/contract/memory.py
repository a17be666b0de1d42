"""How much memory this process can still get, and the refusal of what needs more: before anything is allocated."""

import os
from pathlib import Path

from erq_export.contract.errors import MachineError

GIB = 2**30
MEMINFO, CGROUPS, OWN_CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_memory(meminfo: Path = MEMINFO, cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int | None:
    """Bytes that can be had without swapping: Linux's MemAvailable, or what a container's limit leaves where that is less.

    None where the system does not tell (neither Linux nor a system with SC_AVPHYS_PAGES): nothing is refused there.
    """
    limits = [_mem_available(meminfo), *_left_in_cgroups(cgroups, own_cgroup)]
    known = [n for n in limits if n is not None]
    return min(known) if known else None


def require_memory(n_bytes: float, what: str, *, fix: str) -> None:
    """MachineError where `what` would take more than there is; it names both numbers."""
    available = available_memory()
    if available is not None and n_bytes > available:
        raise MachineError(
            f"{what}: at least {size(n_bytes)} of memory are needed, {size(available)} are free", fix=fix
        )


def size(n_bytes: float) -> str:
    """As a person reads it: "1.5 GiB", and the bytes below that."""
    return f"{n_bytes / GIB:,.1f} GiB" if n_bytes >= GIB / 10 else f"{int(n_bytes):,} bytes"


def _mem_available(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024  # the file counts in kB
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _left_in_cgroups(cgroups: Path, own_cgroup: Path) -> list[int]:
    """What the memory limits of this process's control groups leave, its own and those above it (version 2, then 1).

    Files that were read lie in a group's cache and are given back when asked for, so they count as free.
    """
    left = []
    for group in _own_groups(cgroups, own_cgroup):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                n_bytes = int((group / limit).read_text()) - int((group / used).read_text())  # "max": no limit
                rows = (line.split() for line in (group / "memory.stat").read_text().splitlines())
                left.append(n_bytes + sum(int(n) for name, n in rows if name == "inactive_file"))
            except (OSError, ValueError):
                continue
    return left


def _own_groups(cgroups: Path, own_cgroup: Path) -> list[Path]:
    groups = [cgroups, cgroups / "memory"]
    try:
        rows = [line.split(":", 2) for line in own_cgroup.read_text().splitlines()]
    except OSError:
        return groups
    for _, controllers, path in (row for row in rows if len(row) == 3):
        base = cgroups if not controllers else cgroups / "memory"
        own = Path(path.lstrip("/"))
        groups += [base / part for part in (own, *own.parents)]
    return list(dict.fromkeys(groups))
