"""What TensorRT's Python packages have, read without importing them: they cannot be installed on a machine without a GPU.

    python tests/support/tensorrt_names.py           looks up the names that our backend uses in the bindings of 11.4, and writes
                                                     tests/backends/tensorrt_11_names.txt
    python tests/support/tensorrt_names.py --types   mypy over the package with the types of TensorRT 10.13

Both download one wheel through pip, without what it depends on.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

BINDINGS, STUBS = "tensorrt-cu13-bindings==11.4.0.106", "tensorrt-stubs==10.13.0.35.1"
ROOT = Path(__file__).parents[2]
LIST = ROOT / "tests" / "backends" / "tensorrt_11_names.txt"
BACKEND = ROOT / "erq_export" / "backends"
FILES = (*sorted((BACKEND / "tensorrt").glob("*.py")), BACKEND / "watch.py")
# What holds an object of the package in these files: variables, and attributes of self.
HOLDERS = {"trt", "builder", "network", "parser", "config", "profile", "ahead", "cache", "runtime", "engine", "context"}
HOLDERS |= {"_trt", "_runtime", "_engine", "_context", "_cache"}
OURS = {"recording"}  # a method of our own logger
PLAIN = {"__members__", "__name__", "__version__", "name", "items", "value"}


def used(source: str) -> set[str]:
    """Every attribute that a source reads, sets or calls on an object of the package."""
    return {name for node in ast.walk(ast.parse(source)) for name in _used_by(node)} - OURS - PLAIN


def _used_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        chain, root = [node.attr], _uncast(node.value)
        while isinstance(root, ast.Attribute) and root.attr not in HOLDERS:
            chain.append(root.attr)
            root = _uncast(root.value)
        held = root.attr if isinstance(root, ast.Attribute) else root.id if isinstance(root, ast.Name) else ""
        if held in HOLDERS:
            yield from chain


def _uncast(node: ast.expr) -> ast.expr:
    """What `cast(type, it)` holds."""
    is_cast = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast"
    return node.args[1] if is_cast and isinstance(node, ast.Call) else node


def guarded(source: str) -> set[str]:
    """The names that a source asks for with hasattr or getattr before it uses them."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    asked = [
        node.args[1] for node in calls if isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr")
    ]
    return {arg.value for arg in asked if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}


def look_up(name: str, library: bytes) -> str:
    """`exact`: a string of the extension module;  `pooled`: the end of one, as linkers keep strings that end alike;  `absent`."""
    if f"\0{name}\0".encode() in library:
        return "exact"
    return "pooled" if f"{name}\0".encode() in library else "absent"


def listed() -> dict[str, str]:
    """The committed list: how each name was found."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return dict(line.split() for line in lines if not line.startswith("#"))


def downloaded(what: str, folder: Path) -> Path:
    """The wheel's files, unpacked; nothing of it is imported."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), what]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder / "files")
    return folder / "files"


def write_list() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (path,) = downloaded(BINDINGS, Path(folder)).rglob("tensorrt.so")
        library = path.read_bytes()
    names = sorted(set().union(*(used(path.read_text(encoding="utf-8")) for path in FILES)))
    lines = "".join(f"{name} {look_up(name, library)}\n" for name in names)
    LIST.write_text(f"# names that erq_export/backends uses, looked up in {BINDINGS}\n{lines}", encoding="utf-8")


def mended(text: str) -> str:
    """The stubs as Python: parameters named `in`, one without a default behind those that have one, and Python's `bool`
    where the package's own name of a tensor type hides it."""
    text = re.sub(r"(?<=-> )bool\b", "__builtins_bool__", text)
    text = text.replace(
        "from __future__ import annotations",
        "from __future__ import annotations\nfrom builtins import bool as __builtins_bool__",
        1,
    )
    text = re.sub(r"\bin: (?=list\[)", "in_: ", text)
    return text.replace("= None, channel_axis: int)", "= None, channel_axis: int = ...)")


def check_types() -> int:
    """mypy over the package; its findings in our own files alone."""
    with tempfile.TemporaryDirectory() as folder:
        files = downloaded(STUBS, Path(folder))
        (files / "tensorrt_libs.pyi").write_text("")
        for path in files.rglob("*.pyi"):
            path.write_text(mended(path.read_text(encoding="utf-8")), encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "--cache-dir", f"{folder}/cache"]
        environment = os.environ | {"MYPYPATH": str(files)}
        said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stdout
    lines = said.splitlines()
    ours = [line for line in lines if line.startswith("erq_export") or "prevented further" in line]
    print("\n".join(ours) or f"no finding in our files; {lines[-1]}")  # noqa: T201
    return 1 if ours else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--types", action="store_true")
    if parser.parse_args().types:
        sys.exit(check_types())
    write_list()
