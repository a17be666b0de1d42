"""Can a run be written to this place? Tried out, not guessed, before any work."""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from erq_export.contract.errors import OutputError

from .owned import obstacle, partial
from .trouble import told

# Bytes that the longest file needs below the folder: half-written, an engine with its library's own temporary suffix.
LONGEST_BELOW = len("/.erq-export-partial-0123456789abcdef/tensorrt-rtx/engine/model.engine") + 32
_PROBE_BYTES = 4096
PATIENCE = 10  # times that parents may be taken away while they are made
_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def real(path: Path) -> Path:
    """The folder meant, absolute, links followed; it need not exist. OutputError for what cannot be a folder."""
    fix = "--out with a folder"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise OutputError(f"{path} is a link to {path.readlink()}, which is not there", fix=fix) from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in it
        words = e.strerror if isinstance(e, OSError) else e
        if isinstance(e, OSError) and e.errno == errno.ENAMETOOLONG:
            return Path(os.path.realpath(path))  # `check_length` says by how much
        raise OutputError(f"cannot use {str(path)[:300]!r} as a folder: {words}", fix=fix) from e
    else:
        if not stat.S_ISDIR(mode):
            raise OutputError(f"{path} is {next((w for is_, w in _KINDS if is_(mode)), 'no folder')}", fix=fix)
    return Path(os.path.realpath(path))


def check_place(path: Path, *, room: int) -> Path:
    """The folder that `path` means, after files were written there, or where it would be made.

    room: bytes that the run will need.  OutputError for a place that cannot be written, is too long a name, has no room.
    """
    root = real(path)
    base = root
    while not os.path.lexists(base):
        base = base.parent
    if not base.is_dir():
        raise OutputError(f"cannot write {path}: {base} is no folder", fix="--out with a folder")
    with told(path):
        check_length(path, root, base)
        check_room(path, base, room)
        made = make_folders(root)  # in the folder itself: a kill in here leaves it empty, and nothing beside it
        try:
            probe(root)
        finally:
            remove_empty(made)
    return root


def check_length(path: Path, root: Path, base: Path) -> None:
    """OutputError where the names to be made, or the longest path in the folder, are longer than the system takes."""
    most = os.pathconf(base, "PC_NAME_MAX")
    for name in root.relative_to(base).parts:
        if (size := len(os.fsencode(name))) > most:
            raise OutputError(
                f"cannot write {str(path)[:80]}…: the name {name[:40]}… has {size} bytes, {most} are allowed here",
                fix="--out with a shorter name",
            )
    needed, most = len(os.fsencode(root)) + LONGEST_BELOW + 1, os.pathconf(base, "PC_PATH_MAX")
    if needed > most:
        raise OutputError(
            f"cannot write {str(path)[:80]}…: paths in it would have up to {needed} bytes, {most} are allowed here",
            fix="--out with a shorter path",
        )


def check_room(path: Path, base: Path, room: int) -> None:
    """OutputError where the file system has less than `room` bytes, or no entry for another file."""
    status = os.statvfs(base)
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < room:  # some network file systems tell nothing: all zeros
        raise OutputError(
            f"{path} has room for {free / 2**20:.0f} MiB, this run needs about {room / 2**20:.0f} MiB",
            fix="free some space, or --out on another disk",
        )
    if status.f_files and not status.f_favail:
        raise OutputError(
            f"{path} has no room for another file (no inodes)", fix="remove some files, or --out elsewhere"
        )


def probe(folder: Path) -> None:
    """Make, write, sync, rename and remove a file in a folder of its own. OSError where that fails."""
    made = partial(folder)
    made.mkdir()
    try:
        with (made / "probe").open("xb") as f:
            f.write(bytes(_PROBE_BYTES))
            f.flush()
            os.fsync(f.fileno())
        (made / "probe").rename(made / "renamed")
        (made / "renamed").rename(partial(made))
    finally:
        with suppress(OSError):
            for path in made.iterdir():
                path.unlink()
        made.rmdir()


def check_changeable(path: Path, root: Path, files: Iterable[str], names: Iterable[str]) -> None:
    """OutputError where files that are to be removed, or folders that are to be written into, are protected."""
    below = {parent for name in (*files, *names) for parent in (root / name).parents if parent.is_relative_to(root)}
    for folder in sorted(below):
        # what leads over a link, or is no folder, was refused before
        if not folder.is_dir() or obstacle(root, f"{folder.relative_to(root).as_posix()}/x") is not None:
            continue
        if folder.stat().st_dev != root.stat().st_dev or (folder != root and folder.is_mount()):
            raise OutputError(
                f"{folder} is another file system than {path}: files cannot appear there at once",
                fix=f"unmount {folder}, or --out with another folder",
            )
        if not os.access(
            folder, os.W_OK | os.X_OK
        ):  # false for root too on a read-only mount and for immutable folders
            raise OutputError(
                f"{folder} cannot be written: read-only, immutable or another user's",
                fix="make it writable, or --out with another folder",
            )
    for name in files:
        if _is_protected(root / name):
            raise OutputError(
                f"{root / name} cannot be removed: it is marked immutable",
                fix="chattr -i it, or --out with another folder",
            )


def _is_protected(path: Path) -> bool:
    """May even who has the right to write it not do so? An immutable file cannot be removed, a read-only one can."""
    try:
        status = path.lstat()
    except OSError:
        return False
    mine = os.geteuid() == 0 or (status.st_uid == os.geteuid() and bool(status.st_mode & stat.S_IWUSR))
    return stat.S_ISREG(status.st_mode) and mine and not os.access(path, os.W_OK)


def make_folders(root: Path) -> list[Path]:
    """Make what is missing of a folder's path; returns what was made, innermost first. Nothing stays after an OSError."""
    made: list[Path] = []
    try:
        for _ in range(PATIENCE):
            try:
                _make_missing(root, made)
                break
            except FileNotFoundError:  # another run made the same parents, and removed them just now
                remove_empty(made)
                made.clear()
        else:
            _make_missing(root, made)
    except BaseException:
        remove_empty(made)
        raise
    return made


def _make_missing(root: Path, made: list[Path]) -> None:
    missing = [root]
    while not missing[-1].exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing[:-1]):
        with suppress(FileExistsError):
            folder.mkdir()
            made.insert(0, folder)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders as far as they are empty, in this order."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
