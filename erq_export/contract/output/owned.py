"""Which files of a folder are a run's own, told by path and hash; removing those and no others.

A manifest may come from anyone and a folder may hold links to anywhere: no link is ever followed below the folder.
"""

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from erq_export.contract.errors import DataError
from erq_export.contract.files import file_sha256, write_bytes
from erq_export.contract.records import decode, encode, read
from erq_export.contract.run_manifest import PARTIAL, OwnedFile, RunManifest

MANIFEST = "manifest.json"
LOCK = ".erq-export.lock"
SYSTEM = "lost+found"  # a fresh ext4 volume holds it
_PARTIAL = re.compile(PARTIAL)


def partial(root: Path) -> Path:
    """A new name in the folder for something that is being written."""
    return root / f".erq-export-partial-{secrets.token_hex(8)}"


def partials(root: Path) -> Iterator[Path]:
    """What killed runs left half-written."""
    return (path for path in root.iterdir() if _PARTIAL.fullmatch(path.name) and not path.is_symlink())


def contents(root: Path) -> list[str]:
    """Names in the folder besides what we left half-written and what a file system puts there itself."""
    names = sorted(path.name for path in root.iterdir())
    return [name for name in names if name not in (LOCK, SYSTEM) and not _PARTIAL.fullmatch(name)]


def read_manifest(root: Path) -> RunManifest:
    """The manifest of the run that the folder holds. DataError where there is none that this version reads."""
    path = root / MANIFEST
    if os.path.islink(path):  # noqa: PTH114 (Path.is_symlink raises where a name is too long)
        raise DataError(f"{path} is a link", fix=RunManifest.REMEDY)
    return read(RunManifest, path)


def save_manifest(root: Path, manifest: RunManifest) -> None:
    """Replace the folder's manifest whole. DataError for one that could not be read again."""
    data = encode(manifest)
    decode(RunManifest, data, source=MANIFEST)
    write_bytes(root / MANIFEST, data, beside=partial(root))


def obstacle(root: Path, path: str) -> str | None:
    """The first part of a relative path that is there and is no real folder, the last part aside; None where all is well."""
    here = root
    for part in path.split("/")[:-1]:
        here /= part
        mode = _mode(here)
        if mode is None:
            return None
        if not stat.S_ISDIR(mode):
            return here.relative_to(root).as_posix()
    return None


def exists(root: Path, path: str) -> bool:
    """Is anything there under this name, a link that leads nowhere included?"""
    return obstacle(root, path) is None and _mode(root / path) is not None


def is_as_written(root: Path, file: OwnedFile) -> bool:
    """A file of this name, size and hash, reached over no link."""
    path = root / file.path
    mode = _mode(path)
    if obstacle(root, file.path) is not None or mode is None or not stat.S_ISREG(mode):
        return False
    return path.stat().st_size == file.bytes and file_sha256(path) == file.sha256


def changed(root: Path, files: Iterable[OwnedFile]) -> list[str]:
    """Paths among `files` where something lies that is none of the files listed for that path."""
    versions: dict[str, list[OwnedFile]] = {}
    for file in files:
        versions.setdefault(file.path, []).append(file)
    return [
        path
        for path, known in versions.items()
        if obstacle(root, path) is not None
        or (exists(root, path) and not any(is_as_written(root, file) for file in known))
    ]


def remove(root: Path, files: Iterable[OwnedFile]) -> None:
    """Remove those that are as written, then the folders that this leaves empty. Others stay."""
    for file in files:
        if not is_as_written(root, file):
            continue
        path = root / file.path
        path.unlink()
        with suppress(OSError):  # not empty, or a mount point
            for folder in path.parents:
                if folder == root:
                    break
                folder.rmdir()


def listed(folder: Path) -> tuple[OwnedFile, ...]:
    """Every file below a folder, written to the disk and hashed. ValueError for what is no plain file."""
    found = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is no plain file")
        with path.open("rb") as f:
            os.fsync(f.fileno())  # a disk that fills up may say so only now
        relative = path.relative_to(folder).as_posix()
        found.append(OwnedFile(path=relative, bytes=path.stat().st_size, sha256=file_sha256(path)))
    return tuple(found)


def _mode(path: Path) -> int | None:
    """What lies there, links not followed; None where nothing does."""
    try:
        return path.lstat().st_mode
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise
