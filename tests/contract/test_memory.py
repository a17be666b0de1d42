"""The memory that can be had is the least of what the machine and its control groups leave."""

import gc
from pathlib import Path

import pytest

from erq_export.contract.errors import MachineError
from erq_export.contract.memory import available_memory, require_memory, size

KIB, MIB, GIB = 2**10, 2**20, 2**30


def machine(folder: Path, *, free: int, limits: dict[str, tuple[str, int, int]], own: str = "0::/a/b") -> int | None:
    """available_memory of a machine whose groups have (limit, bytes used, of them cached and inactive)."""
    (folder / "meminfo").write_text(f"MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: {free // KIB} kB\n")
    for name, (limit, used, cached) in limits.items():
        group = folder / "groups" / name
        group.mkdir(parents=True, exist_ok=True)
        v1 = name.startswith("memory")
        (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(f"{limit}\n")
        (group / ("memory.usage_in_bytes" if v1 else "memory.current")).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 7\n")
    (folder / "cgroup").write_text(f"{own}\n")
    return available_memory(folder / "meminfo", folder / "groups", folder / "cgroup")


def test_without_limits_it_is_what_linux_says(tmp_path: Path) -> None:
    assert machine(tmp_path, free=8 * GIB, limits={}) == 8 * GIB
    assert machine(tmp_path, free=8 * GIB, limits={"": ("max", GIB, 0)}) == 8 * GIB


@pytest.mark.parametrize("group", ["", "a", "a/b"])
def test_a_containers_limit_counts_wherever_it_is_set(tmp_path: Path, group: str) -> None:
    """Cached files are given back when they are asked for."""
    limit = (str(4 * GIB), 3 * GIB, GIB // 2)
    assert machine(tmp_path, free=8 * GIB, limits={group: limit}) == GIB + GIB // 2
    assert machine(tmp_path, free=GIB, limits={group: limit}) == GIB


def test_another_groups_limit_does_not_count(tmp_path: Path) -> None:
    assert machine(tmp_path, free=8 * GIB, limits={"c": ("1", 1, 0)}) == 8 * GIB


def test_the_first_version_of_groups_is_read_too(tmp_path: Path) -> None:
    limits = {"memory/a": (str(2 * GIB), GIB, 0)}
    assert machine(tmp_path, free=8 * GIB, limits=limits, own="5:memory:/a\n6:cpu:/") == GIB


def test_unreadable_numbers_are_no_limits(tmp_path: Path) -> None:
    assert machine(tmp_path, free=8 * GIB, limits={"a": ("lots", 1, 0)}, own="nonsense") == 8 * GIB


def test_this_machine_has_some_and_a_hundred_mebibytes_show() -> None:
    before = available_memory()
    assert before is None or 0 < before < 2**50
    block = bytearray(b"x" * (300 * MIB))
    after = available_memory()
    del block
    gc.collect()
    assert before is None or after is None or after < before  # others use it too; 300 MiB stand out


def test_both_numbers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: 3 * GIB)
    require_memory(3 * GIB, "the picture", fix="a smaller one")
    with pytest.raises(MachineError, match=r"the picture: at least 4\.5 GiB of memory are needed, 3\.0 GiB are free"):
        require_memory(4.5 * GIB, "the picture", fix="a smaller one")
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: None)
    require_memory(2**80, "the picture", fix="")


def test_sizes_are_read_by_people() -> None:
    assert (size(1234), size(1.5 * GIB), size(5000 * GIB)) == ("1,234 bytes", "1.5 GiB", "5,000.0 GiB")
