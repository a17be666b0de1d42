"""Files that appear whole or not at all, and their hashes."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes, *, beside: Path | None = None) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never a half, even after a power cut.

    beside: what the half-written file is called meanwhile; on the same file system.
    """
    half = beside or path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with half.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        half.replace(path)
    except BaseException:
        with suppress(OSError):
            half.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """JSON, indented, keys in the order given."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def graph_sha256(path: Path) -> str:
    """Of a graph: model.onnx and, where its tensors lie beside it, model.onnx.data, by name and content.

    The same wherever the folder lies, and whatever else lies in it.
    """
    files = (path, path.with_name(f"{path.name}.data"))
    return content_of((file.name, file_sha256(file)) for file in files if file.is_file())


def content_of(files: Iterable[tuple[str, str]]) -> str:
    """One sha256 for (name, sha256) of every file; the store's entries have the same."""
    lines = "".join(f"{name}\0{sha256}\n" for name, sha256 in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
