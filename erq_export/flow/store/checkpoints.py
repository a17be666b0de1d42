"""Progress inside one artifact that is being made: files that survive a kill and are checked when read."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from erq_export.flow.store.record import sha256_of
from erq_export.flow.store.trouble import identity_of, trouble_behind

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class Checkpoints:
    """Named files of an artifact that is being made, in `folder`; used while its key is held, so by one process at a time.

    A file lies in a folder that is named after it and after its content, `<name>@<sha256>/<name>`, and comes there by one
    rename: a kill leaves the old file, or the new one, or both. `folder` is made when the first file is saved. `older`, where
    there is one, is a folder of the same artifact that can still be read, but not written any more.
    """

    def __init__(self, folder: Path, *, older: Path | None = None, complain: Callable[[OSError], None]) -> None:
        self.folder = folder
        self.older = older
        self._complain = complain

    def save(self, name: str, write: Callable[[Path], None]) -> bool:
        """Let `write(path)` make one file, and keep it under `name` in place of the one before.

        False where the disk doesn't take it (full, read-only, gone): the work goes on, only without this checkpoint, and
        `complain` was told. What `write` raises for another reason is raised, and the file before stays. ValueError for a
        name with other characters than letters, digits and `_.-`.
        """
        _check(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.folder))
        except OSError as e:
            self._complain(e)
            return False
        identity = identity_of(beside)
        try:
            write(beside / name)
            with (beside / name).open("rb") as f:
                os.fsync(f.fileno())
            final = self.folder / f"{name}@{sha256_of(beside / name)}"
            before = [path for path in self._all(self.folder, name) if path != final]
            if _whole(final / name):
                os.utime(final)  # the same content is there already: only make it the newest
            else:
                shutil.rmtree(final, ignore_errors=True)
                beside.rename(final)
        except Exception as e:
            found = trouble_behind(e, beside, identity or (0, 0))
            if found is None:
                raise
            self._complain(found.error)
            return False
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        for path in before:
            shutil.rmtree(path, ignore_errors=True)
        return True

    def read(self, name: str) -> Path | None:
        """The file last saved as `name`, its content checked; None where there is none, or only a damaged one."""
        _check(name)
        for folder in (self.folder, self.older):
            if folder is None:
                continue
            for path in self._all(folder, name):
                if _whole(path / name):
                    return path / name
        return None

    def names(self) -> list[str]:
        """What was saved, in order of names; whether a file is whole, `read` tells."""
        folders = [folder for folder in (self.folder, self.older) if folder is not None]
        return sorted({path.name.rpartition("@")[0] for folder in folders for path in self._all(folder, "*")})

    def discard(self) -> None:
        """Remove all of them: the artifact is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _all(folder: Path, name: str) -> list[Path]:
        """Candidates for `name`, newest first."""
        found = []
        with suppress(OSError):
            for path in folder.glob(f"{name}@*"):
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]


def _whole(path: Path) -> bool:
    """Is the file there, with the content that its folder is named after?"""
    try:
        return not path.is_symlink() and sha256_of(path) == path.parent.name.rpartition("@")[2]
    except OSError:
        return False


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"checkpoint {name!r}: letters, digits, '_', '.' and '-', at most 100")
