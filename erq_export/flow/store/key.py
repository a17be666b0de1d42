"""Content keys: what an artifact is made of, as one hash."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

KEY = re.compile(r"[0-9a-f]{64}")
KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")


def key(kind: str, inputs: Mapping[str, str], slice: Any, code: str) -> str:
    """The key of an artifact: 64 hexadecimal digits, sha256 of everything that decides what it is.

    kind    what it is, such as "bundle"
    inputs  name → hash (or version) of everything it is made from
    slice   the part of the spec it depends on: dict with string keys, list, tuple, str, int, float, bool, None
    code    `code_hash` of what makes it

    Equal arguments give equal keys in every process and on every machine; the order of a dict's keys doesn't matter;
    1, 1.0 and True are three different values. TypeError for what JSON cannot say, ValueError for NaN and infinity.
    """
    if not KIND.fullmatch(kind):
        raise ValueError(f"kind {kind!r}: lower-case letters, digits and '-', at most 32")
    parts = {"kind": kind, "inputs": dict(inputs), "slice": slice, "code": code}
    _check(parts, "key")
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _check(value: Any, where: str) -> None:
    """Refuse what JSON would write in two ways, or turn into something else without a word."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{where}: the key {name!r} of a dict is no string")
            _check(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check(item, f"{where}[{i}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} is not finite")
    elif value is not None and not isinstance(value, str | int):
        raise TypeError(f"{where}: a {type(value).__name__} has no content to hash; give str, number, list or dict")


def code_hash(*names: str) -> str:
    """sha256 of the source of packages (all *.py below them) and modules, by dotted name; the order doesn't matter.

    Nothing is imported where the usual finders suffice. Symbolic links are followed, so a checkout, in which
    `erq_export/calibrate` is a link, and a wheel, in which it is a folder, give the same hash. Read once per process.
    ModuleNotFoundError for a name that leads to no source file.
    """
    total = hashlib.sha256()
    for name in sorted(set(names)):
        total.update(f"{name}\0{_one_code_hash(name)}\n".encode())
    return total.hexdigest()


@cache
def _one_code_hash(name: str) -> str:
    total = hashlib.sha256()
    n_files = 0
    for relative, path in sorted(_sources(name)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{relative}\0{digest}\n".encode("utf-8", "surrogateescape"))
        n_files += 1
    if not n_files:
        raise ModuleNotFoundError(f"no source of {name!r} to hash", name=name)
    return total.hexdigest()


def _sources(name: str) -> Iterator[tuple[str, Path]]:
    """(name relative to the package, file) of every source file; none where `name` leads nowhere."""
    spec = _find(name)
    if spec is None:
        return
    for location in spec.submodule_search_locations or ():
        yield from _python_files(Path(location))
    if spec.submodule_search_locations is None and spec.origin is not None and spec.origin.endswith(".py"):
        yield Path(spec.origin).name, Path(spec.origin)


def _find(name: str) -> ModuleSpec | None:
    """Walk down the dotted name without importing parents; import them only where the walk finds nothing."""
    top, *rest = name.split(".")
    spec, path = find_spec(top), top
    for part in rest:
        path = f"{path}.{part}"
        spec = spec and PathFinder.find_spec(path, spec.submodule_search_locations or [])
    return spec or find_spec(name)


def _python_files(root: Path) -> Iterator[tuple[str, Path]]:
    seen = {root.resolve()}
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        inner = {name: (here / name).resolve() for name in sorted(folders) if name != "__pycache__"}
        # A link to a folder that was walked already, or lies around this one, would be read twice or never end.
        folders[:] = [name for name, target in inner.items() if target not in seen]
        seen |= set(inner.values())
        for file in files:
            if file.endswith(".py"):
                yield (here / file).relative_to(root).as_posix(), here / file
