"""What goes wrong with the place where a store lives, told apart from what goes wrong in a stage."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erq_export.contract.errors import ErqError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNWRITABLE = frozenset({errno.EROFS, errno.ESTALE})
_DENIED = frozenset({errno.EACCES, errno.EPERM})
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})


class StoreTrouble(Exception):
    """The store's folder cannot be used as it must be: full, read-only, gone, without locks. Never reaches the user."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error
        self.n_bytes = 0  # written when it happened

    @property
    def full(self) -> bool:
        return self.error.errno in FULL

    @property
    def gone(self) -> bool:
        return self.error.errno == errno.ENOENT

    @property
    def no_locks(self) -> bool:
        return self.error.errno in _NO_LOCKS

    @property
    def words(self) -> str:
        return self.error.strerror or str(self.error)


@contextmanager
def trouble() -> Iterator[None]:
    """Around the store's own work with files: OSError becomes StoreTrouble. Never put it around a stage's work."""
    try:
        yield
    except OSError as e:
        raise StoreTrouble(e) from e


def trouble_behind(error: Exception, folder: Path, identity: tuple[int, int]) -> StoreTrouble | None:
    """Did a stage that wrote into the store's `folder` fail because of the store's place, not for a reason of its own?

    `identity` is what `identity_of(folder)` was when the stage began. Looked at: is the folder still there, and does any
    error in the chain say full, read-only or denied, about a file below `folder` or about no named file (as errors of
    write() do; libraries in other languages keep only the words). An ErqError is the stage's own answer: never trouble.
    """
    if isinstance(error, ErqError):
        return None
    if identity_of(folder) != identity:
        return StoreTrouble(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)))
    chain: BaseException | None = error
    seen: set[int] = set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        if isinstance(chain, OSError) and chain.errno is not None:
            named = chain.filename is not None
            ours = named and Path(os.fsdecode(chain.filename)).is_relative_to(folder)
            codes = FULL | _UNWRITABLE | (_DENIED if ours else frozenset())
            if chain.errno in codes and (ours or not named):
                return StoreTrouble(chain)
        else:
            for code in FULL:
                if os.strerror(code) in str(chain):
                    return StoreTrouble(OSError(code, os.strerror(code)))
        chain = chain.__cause__ or chain.__context__
    return None


def identity_of(folder: Path) -> tuple[int, int] | None:
    """(device, inode) of a folder; None where it is not there. A folder that was deleted and made again differs."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
