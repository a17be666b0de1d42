"""A place that cannot be written is refused before any work, with a way out; a disk that fails later loses nothing."""

import errno
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from output_runs import PLANNED, check_ended, fake_run, files_below, leftovers, write_run

from erq_export.contract.errors import OutputError
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.output.place import LONGEST_BELOW

MIB = 1 << 20


def refused(out: Path, *, room: int = 0) -> str:
    """What `check`, `begin` and `resume` say, the first's words; each must refuse, and with a fix."""
    folder = OutputFolder(out)
    calls: tuple[Callable[[], object], ...] = (
        lambda: folder.check(overwrite=True, planned=PLANNED, room=room),
        lambda: folder.begin(overwrite=True, planned=PLANNED, room=room).__enter__(),
        lambda: folder.resume(planned=PLANNED, room=room).__enter__(),
    )
    said = []
    for call in calls:
        with pytest.raises(OutputError) as caught:
            call()
        assert caught.value.fix
        said.append(caught.value.problem)
    assert said[0] == said[1]
    return said[0]


# ---------------------------------------------------------------- no folder


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    for name, words in {
        "file": "is a file",
        "pipe": "is a pipe",
        "socket": "is a socket",
        "file/out": "is no folder",
        "file/deep/out": "is no folder",
        "pipe/out": "is no folder",
        "dangling": "is a link to nowhere, which is not there",
        "loop": "symbolic links",
        "loop/out": "symbolic links",
        "a\0b": "null byte",
    }.items():
        assert words in refused(tmp_path / name), name
    assert sorted(tmp_path.rglob("*")) == before
    assert "is a device" in refused(Path("/dev/null"))
    with pytest.raises(OutputError, match="--out is empty"):
        OutputFolder.named("")
    assert OutputFolder.named(".").path == Path()


def test_a_folder_below_a_link_that_leads_nowhere_is_made_there(tmp_path: Path) -> None:
    """As the shell's mkdir -p does not: the link's own target is the place that was meant."""
    (tmp_path / "dangling").symlink_to("there")
    fake_run(tmp_path / "dangling" / "out", 1)
    check_ended(tmp_path / "there" / "out", 1, {})


def test_names_at_and_over_the_limit(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    fake_run(tmp_path / ("n" * longest), 1)
    assert f"has {longest + 1} bytes" in refused(tmp_path / ("n" * (longest + 1)))
    assert f"has {longest + 1} bytes" in refused(tmp_path / "deep" / ("ü" * (longest // 2) + "nn") / "out")


def test_paths_at_and_over_the_limit(tmp_path: Path) -> None:
    path, most = tmp_path, os.pathconf(tmp_path, "PC_PATH_MAX") - 1 - LONGEST_BELOW
    while most - len(os.fsencode(path)) > 202:
        path = path / ("d" * 200)
    path = path / ("d" * (most - len(os.fsencode(path)) - 1))
    fake_run(path, 1)
    check_ended(path, 1, {})
    assert "bytes, " in refused(path.with_name(path.name + "d"))


# ---------------------------------------------------------------- no right to write


def chattr(flag: str, path: Path) -> None:
    done = subprocess.run(["chattr", flag, path], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"chattr {flag} is not allowed here: {done.stderr}")


@pytest.fixture
def immutable() -> Iterator[Callable[[Path], None]]:
    """Makes a path immutable until the test ends."""
    made: list[Path] = []

    def make(path: Path) -> None:
        chattr("+i", path)
        made.append(path)

    yield make
    for path in made:
        chattr("-i", path)


@pytest.mark.parametrize("name", [".", "bundle", "onnx/engine", "bundle/a"])
def test_an_immutable_folder_or_file_of_an_old_run(
    name: str, tmp_path: Path, immutable: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    fake_run(out, 1)
    before = files_below(out)
    immutable(out / name)
    said = refused(out)
    assert "cannot be" in said or "cannot write" in said
    assert files_below(out) == before
    assert leftovers(out) == []


def test_an_immutable_parent(tmp_path: Path, immutable: Callable[[Path], None]) -> None:
    immutable(tmp_path)
    assert "cannot write" in refused(tmp_path / "a" / "out")


@pytest.fixture
def another_user() -> Iterator[None]:
    """Root may write anywhere, so it becomes nobody meanwhile."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    yield
    os.seteuid(me)


def test_a_folder_without_the_right_to_write(another_user: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        assert "Permission denied" in refused(Path(folder))
        assert "Permission denied" in refused(Path(folder) / "out")
        Path(folder).chmod(0o000)
        assert "Permission denied" in refused(Path(folder) / "out")
        Path(folder).chmod(0o755)


# ---------------------------------------------------------------- volumes


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own, as a container's volume is."""
    (path := tmp_path / "volume").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_volume_is_written_and_overwritten(volume: Path) -> None:
    fake_run(volume, 1)
    fake_run(volume, 2)
    check_ended(volume, 2, {})


def test_a_read_only_volume(volume: Path) -> None:
    fake_run(volume / "out", 1)
    before = files_below(volume)
    subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
    assert "Read-only file system" in refused(volume / "out")
    assert "Read-only file system" in refused(volume / "new")
    assert files_below(volume) == before


def test_a_volume_without_room_is_refused_before_the_work(volume: Path) -> None:
    assert "has room for 4 MiB, this run needs about 64 MiB" in refused(volume / "out", room=64 * MIB)
    assert list(volume.iterdir()) == []


@pytest.mark.parametrize("over", [False, True])
def test_a_volume_that_fills_up_leaves_the_old_run_or_nothing(over: bool, volume: Path) -> None:
    out = volume / "out"
    if over:
        fake_run(out, 1)
    before = files_below(out)
    begun = OutputFolder(out).begin(overwrite=True)
    with pytest.raises(OutputError, match="No space left on device") as caught, begun as writing:
        writing.place("bundle", lambda folder: (folder / "a").write_bytes(bytes(8 * MIB)))
    assert "free some space" in caught.value.fix
    assert files_below(out) == before
    assert leftovers(out) == []
    assert out.exists() == over
    fake_run(out, 2)
    check_ended(out, 2, {})


def test_a_target_folder_on_another_volume_is_refused(volume: Path) -> None:
    out = volume.parent / "out"
    fake_run(out, 1)
    (out / "tensorrt").mkdir()
    subprocess.run(["mount", "--bind", volume, out / "tensorrt"], check=True)
    try:
        folder = OutputFolder(out)
        with pytest.raises(OutputError, match="another file system"):
            folder.check(overwrite=True, planned=folder.planned(["tensorrt"]))
    finally:
        subprocess.run(["umount", out / "tensorrt"], check=True)


# ---------------------------------------------------------------- errors of a stage


class LibraryError(Exception):
    """As of a library in another language: only words are left of the system's error."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        LibraryError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_stage_that_meets_the_disks_end_says_so(error: Exception, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise error

    with pytest.raises(OutputError, match="cannot write") as caught, OutputFolder(tmp_path / "out").begin() as writing:
        writing.place("bundle", fail)
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_stages_other_errors_are_its_own(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (tmp_path / "photo.png").read_bytes()

    with pytest.raises(FileNotFoundError), OutputFolder(tmp_path / "out").begin() as writing:
        writing.place("bundle", fail)


def test_a_folder_that_goes_away_meanwhile(tmp_path: Path) -> None:
    begun = OutputFolder(tmp_path / "out").begin()
    with pytest.raises(OutputError, match="cannot write") as caught, begun as writing:  # noqa: PT012
        (tmp_path / "out" / ".erq-export.lock").unlink()
        (tmp_path / "out").rmdir()
        write_run(writing, 1)
    assert "run again" in caught.value.fix
