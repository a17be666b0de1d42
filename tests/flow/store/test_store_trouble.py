"""A store that is misplaced, denied, gone or without locks never fails a run that didn't name it, and says so once."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from erq_export.contract.errors import MachineError, OutputError
from erq_export.flow.store.entry import Work
from erq_export.flow.store.store import Store

A, B, C = ("abc"[i] * 64 for i in range(3))


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


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "store"


def a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def a_dangling_link(tmp_path: Path) -> Path:
    (tmp_path / "link").symlink_to(tmp_path / "file" / "x")
    return below_a_file(tmp_path).parent.parent / "link"


def a_loop(tmp_path: Path) -> Path:
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path / "loop"


def too_long(tmp_path: Path) -> Path:
    return tmp_path / ("x" * 300)


def in_the_kernels_own(tmp_path: Path) -> Path:
    return Path("/proc/self/store")


@pytest.mark.parametrize("place", [below_a_file, a_file, a_dangling_link, a_loop, too_long, in_the_kernels_own])
def test_where_no_store_can_be(place: Callable[[Path], Path], tmp_path: Path) -> None:
    root = place(tmp_path)
    with pytest.raises(OutputError, match="cannot be written") as caught:
        Store.at(root, explicit=True)
    assert "--no-store" in caught.value.fix
    said: list[str] = []
    with Store.at(root, say=said.append) as store:
        assert len(works(store)) == 1
        assert works(store) == [], "not even then is anything made twice"
        assert len(works(store, B)) == 1
    assert len(said) == 1
    assert str(root) in said[0]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(tmp_path / "store"):
            raise OSError(code, os.strerror(code))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(MachineError, match="without locks"):
        Store.at(tmp_path / "store", explicit=True)
    said: list[str] = []
    with Store.at(tmp_path / "store", say=said.append) as store:
        assert len(works(store)) == 1
        assert works(store) == []
    assert len(said) == 1


def test_locks_that_fail_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    said: list[str] = []
    with Store.at(tmp_path, say=said.append, explicit=True) as store:

        def flock(fd: int, operation: int) -> None:
            if Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(tmp_path):
                raise OSError(errno.ENOLCK, "no locks")
            real(fd, operation)

        monkeypatch.setattr(fcntl, "flock", flock)
        assert len(works(store)) == 1
        with store.workspace("bundle", B) as work:
            assert work.checkpoints.save("b", lambda path: path.write_text("b"))
    assert len(said) == 1


def test_no_folder_for_temporary_files_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with Store.none() as store, pytest.raises(OutputError, match="temporary files") as caught:
        works(store)
    assert "TMPDIR" in caught.value.fix


@pytest.mark.parametrize("when", ["before", "making", "made again", "saved"])
def test_deleted_while_running(when: str, tmp_path: Path) -> None:
    root = tmp_path / "store"
    calls: list[int] = []

    def make(work: Work) -> None:
        calls.append(1)
        if when == "making" and len(calls) == 1:
            shutil.rmtree(root)
        (work.folder / "x").write_text("1")
        work.checkpoints.save("c", lambda path: path.write_text("c"))
        if when == "made again" and len(calls) == 1:
            shutil.rmtree(root)
            work.folder.mkdir(parents=True)  # as a maker of sub-folders does, without knowing that "x" is lost
        if when == "saved" and len(calls) == 1:
            shutil.rmtree(root)

    said: list[str] = []
    with Store(root, 1 << 30, say=said.append) as store:
        works(store, B)
        if when == "before":
            shutil.rmtree(root)
        with store.fetch("bundle", A, make, description="") as entry:
            assert (entry.folder / "x").read_text() == "1"
        assert len(calls) == (1 if when == "before" else 2)
        assert [(item.key, item.finished) for item in store.contents()] == [(A, True)], "it keeps again"
    assert said == []


def test_deleted_again_and_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    calls: list[Path] = []

    def make(work: Work) -> None:
        calls.append(work.folder)
        shutil.rmtree(root, ignore_errors=True)
        (work.folder / "x").write_text("1")

    said: list[str] = []
    with Store(root, 1 << 30, say=said.append) as store:
        store.fetch("bundle", A, make, description="")
    assert (len(calls), calls[-1].is_relative_to(root), len(said)) == (3, False, 1)


def test_deleted_between_fetch_and_reading(tmp_path: Path) -> None:
    root = tmp_path / "store"
    reads: list[int] = []

    def reader(folder: Path) -> str:
        reads.append(1)
        if len(reads) == 1:
            shutil.rmtree(root)
        return (folder / "x").read_text()

    def wrong(folder: Path) -> str:
        raise FileNotFoundError("a reader's own mistake")

    calls: list[str] = []
    with Store(root, 1 << 30) as store:
        assert store.read("bundle", A, writes(3, calls), reader, description="") == "xxx"
        assert len(calls) == 2
        with pytest.raises(FileNotFoundError, match="own mistake"):
            store.read("bundle", A, writes(3, calls), wrong, description="")
        assert len(calls) == 2


def test_an_error_about_another_place_is_the_makers_own(tmp_path: Path) -> None:
    elsewhere = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "elsewhere"))
    mistake = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "images"))
    answer = OutputError("the disk is full", fix="make room")
    answer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    for error in (elsewhere, mistake, answer):
        calls: list[int] = []

        def make(work: Work, error: Exception = error, calls: list[int] = calls) -> None:
            calls.append(1)
            raise error

        with Store(tmp_path / "store", 1 << 30) as store, pytest.raises(type(error)) as caught:
            store.fetch("bundle", A, make, description="")
        assert (caught.value, len(calls)) == (error, 1)


@pytest.mark.parametrize("name", ["rename", "fsync"])
def test_the_stores_own_work_fails(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with Store(tmp_path / "store", 1 << 30, say=said.append) as store, monkeypatch.context() as patch:

        def fails(*arguments: object, **more: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        if name == "fsync":
            calls: list[int] = []
            real = os.fsync

            def fails_first(fd: int) -> None:
                calls.append(1)
                if len(calls) == 1:
                    raise OSError(errno.EROFS, "Read-only file system")
                real(fd)

            patch.setattr(os, "fsync", fails_first)
        else:
            real_rename = Path.rename

            def rename(self: Path, target: Path) -> Path:
                if self.is_relative_to(tmp_path / "store"):
                    fails()
                return real_rename(self, target)

            patch.setattr(Path, "rename", rename)
        assert len(works(store)) == 2, "made in the store in vain, then elsewhere"
        assert works(store) == []
    assert len(said) == 1
