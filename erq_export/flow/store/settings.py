"""Where the store is and how large it may grow, unless the user says otherwise."""

import os
import re
from pathlib import Path

import platformdirs

from erq_export.contract.errors import SpecError

ROOT_VARIABLE = "ERQ_EXPORT_STORE"
LIMIT_VARIABLE = "ERQ_EXPORT_STORE_LIMIT"
DEFAULT_LIMIT_BYTES = 20 << 30
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,12})(\.[0-9]{1,6})? ?(B|KiB|MiB|GiB|TiB)")


def default_root() -> Path:
    """ERQ_EXPORT_STORE where set and not empty, else `erq-export/store` in the user's cache folder.

    The cache folder follows the platform's convention ($XDG_CACHE_HOME or ~/.cache, ~/Library/Caches, %LOCALAPPDATA%).
    SpecError where neither gives an absolute path, as for a user without a home.
    """
    named = os.environ.get(ROOT_VARIABLE)
    try:
        root = (
            Path(named).expanduser().absolute()
            if named
            else platformdirs.user_cache_path("erq-export", False) / "store"
        )
    except (RuntimeError, OSError) as e:
        raise SpecError(f"no folder for the store: {e}", fix=f"{ROOT_VARIABLE}=/an/absolute/folder") from e
    if not root.is_absolute():
        raise SpecError(f"no folder for the store: {root} is not absolute", fix=f"{ROOT_VARIABLE}=/an/absolute/folder")
    return root


def default_limit() -> int:
    """Bytes: ERQ_EXPORT_STORE_LIMIT where set and not empty, else 20 GiB. SpecError where it is no size."""
    named = os.environ.get(LIMIT_VARIABLE)
    return parse_size(named, what=LIMIT_VARIABLE) if named else DEFAULT_LIMIT_BYTES


def parse_size(text: str, *, what: str = "size") -> int:
    """Bytes of "20GiB", "1.5 TiB", "500MiB", "4096B". SpecError, naming `what`, for anything else and for nothing at all."""
    match = _SIZE.fullmatch(text)
    n_bytes = int(float(match[1] + (match[2] or "")) * _UNITS[match[3]]) if match else 0
    if n_bytes < 1:
        raise SpecError(
            f"{what}={text!r} is no size: a number and one of {', '.join(_UNITS)}, more than nothing",
            fix=f"{what}=20GiB; --no-store keeps nothing at all",
        )
    return n_bytes


def in_words(n_bytes: int) -> str:
    """ "1.5 GiB": the largest unit of which there is at least one."""
    unit = max((u for u in _UNITS if _UNITS[u] <= max(n_bytes, 1)), key=_UNITS.__getitem__)
    return f"{n_bytes} B" if unit == "B" else f"{n_bytes / _UNITS[unit]:.1f} {unit}"
