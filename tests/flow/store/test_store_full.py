"""A disk that fills up, or turns read-only: old entries go, then the run goes on without keeping, and says so once."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from erq_export.contract.errors import ErqError, OutputError
from erq_export.flow.store.entry import Work
from erq_export.flow.store.store import Store

A, B, C = ("abc"[i] * 64 for i in range(3))
MIB = 1 << 20


def writes(n_bytes: int, calls: list[str]) -> Callable[[Work], None]:
    def make(work: Work) -> None:
        calls.append(str(work.folder))
        (work.folder / "x").write_bytes(b"x" * n_bytes)

    return make


def works(store: Store, key: str = A, n_bytes: int = 10) -> list[str]:
    """Fetch and read; where it was made."""
    calls: list[str] = []
    with store.fetch("bundle", key, writes(n_bytes, calls), description="bundle of vit_s") as entry:
        assert (entry.folder / "x").read_bytes() == b"x" * n_bytes
    return calls


class LibraryError(Exception):
    """As of a library in another language: only words are left of the system's error."""


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        LibraryError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_then_room_after_eviction(full: Exception, tmp_path: Path) -> None:
    calls: list[int] = []

    def make(work: Work) -> None:
        calls.append(1)
        (work.folder / "x").write_text("1")
        work.checkpoints.save("c", lambda path: path.write_text("c"))
        if len(calls) == 1:
            raise full
        assert work.checkpoints.read("c") is not None

    said: list[str] = []
    with Store(tmp_path, 1 << 30, say=said.append) as store:
        works(store, B)
        works(store, C)
        assert store.fetch("bundle", A, make, description="").made_now
        assert [item.key for item in store.contents()] == [C, A]
        assert store.counts["bundle"].evicted == 1
    assert said == []


def test_full_for_good(tmp_path: Path) -> None:
    calls: list[Path] = []

    def make(work: Work) -> None:
        calls.append(work.folder)
        if work.folder.is_relative_to(tmp_path / "store"):
            work.checkpoints.save("c", lambda path: path.write_text("c"))
            raise OSError(errno.ENOSPC, "No space left on device")
        assert work.checkpoints.read("c") is not None, "what was done before the disk was full is not done again"

    said: list[str] = []
    with Store(tmp_path / "store", 1 << 30, say=said.append) as store:
        works(store, B, 10)
        for _ in range(2):
            store.fetch("bundle", A, make, description="").close()
        assert len(calls) == 3
        assert len(works(store, C)) == 1
    assert len(said) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own. Where nobody may mount one, the tests above cover the same with made-up errors."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_real_disk_fills_up(small_disk: Path) -> None:
    said: list[str] = []
    with Store(small_disk / "store", 1 << 30, say=said.append, explicit=True) as store:
        works(store, B, MIB)
        works(store, C, 2 * MIB)
        places = works(store, A, 3 * MIB)
        assert [Path(place).is_relative_to(small_disk) for place in places] == [True, True]
        assert said == []
        assert [item.key for item in store.contents()] == [A]
        assert [Path(place).is_relative_to(small_disk) for place in works(store, B, 6 * MIB)] == [True, True, False]
        assert len(said) == 1
    with Store(small_disk / "store", 1 << 30, say=said.append) as store:
        assert list((small_disk / "store" / "v1" / "partial").iterdir()) == []


def test_a_full_disk_is_refused_before_the_work_where_the_store_was_named(small_disk: Path) -> None:
    with Store(small_disk / "store", 1 << 30) as store:
        works(store, B, MIB)
    fill(small_disk / "filling")
    with Store(small_disk / "store", 1 << 30, explicit=True) as store:
        assert (store.contents(), store.counts["bundle"].evicted) == ([], 1), "there is room once old entries go"
    fill(small_disk / "more")
    with pytest.raises(OutputError, match="No space left"):
        Store(small_disk / "store", 1 << 30, explicit=True)
    said: list[str] = []
    with Store(small_disk / "store", 1 << 30, say=said.append) as store:
        assert len(works(store, A, MIB)) == 3
        assert works(store, A, MIB) == []
    assert len(said) == 1


def test_what_a_full_disk_keeps_is_still_read(small_disk: Path) -> None:
    with Store(small_disk / "store", 1 << 30) as store:
        works(store, B, MIB)
    fill(small_disk / "filling")
    said: list[str] = []
    with Store(small_disk / "store", 1 << 30, say=said.append) as store:
        assert works(store, B, MIB) == []
    assert said == []


def test_a_disk_that_becomes_read_only(small_disk: Path) -> None:
    with Store(small_disk / "store", 1 << 30) as store:
        works(store, B)
    said: list[str] = []
    with Store(small_disk / "store", 1 << 30, say=said.append) as store:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        assert len(works(store, A)) == 1
        assert works(store, A) == []
        assert len(works(store, B)) == 1, "without locks it could vanish: not read"
    with Store(small_disk / "store", 1 << 30, say=said.append) as store:
        assert len(works(store, A)) == 1
    assert len(said) == 2
    with pytest.raises(OutputError, match="Read-only"):
        Store(small_disk / "store", 1 << 30, explicit=True)


def test_checkpoints_on_a_full_disk_cost_one_note(small_disk: Path) -> None:
    said: list[str] = []
    with Store(small_disk / "store", 1 << 30, say=said.append) as store, store.workspace("bundle", A) as work:
        assert work.checkpoints.save("a", lambda path: path.write_bytes(b"a" * MIB))
        for name in ("a", "b"):
            assert not work.checkpoints.save(name, lambda path: path.write_bytes(b"b" * 5 * MIB))
        saved = work.checkpoints.read("a")
        assert saved is not None
        assert saved.read_bytes() == b"a" * MIB
        assert work.checkpoints.names() == ["a"]
    assert len(said) == 1


def fill(path: Path) -> None:
    """Leave no byte."""
    with path.open("wb", buffering=0) as f:
        try:
            while f.write(b"f" * 4096):
                pass
        except OSError as e:
            assert e.errno == errno.ENOSPC  # noqa: PT017 (it must come)


def test_no_room_anywhere_is_an_error_with_a_fix(tmp_path: Path) -> None:
    def make(work: Work) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store(tmp_path, 1 << 30) as store, pytest.raises(ErqError, match="no place for bundle of vit_s") as caught:
        store.fetch("bundle", A, make, description="bundle of vit_s")
    assert "TMPDIR" in caught.value.fix
