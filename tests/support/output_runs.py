"""A run that writes random files into an output folder, and what may lie there when it was broken off anywhere."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

from erq_export.contract.errors import DataError
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.output.owned import LOCK, read_manifest
from erq_export.contract.output.writing import Writing

Files = dict[str, bytes]
PLANNED = (
    "bundle/a",
    "bundle/sub/b",
    "run.json",
    "onnx/model.onnx",
    "onnx/manifest.json",
    "onnx/engine/e",
    "report.json",
)


def data_of(seed: int, name: str) -> bytes:
    """The bytes that the run of this seed writes under a name; some names have equal bytes in all runs."""
    chance = random.Random(name if name.endswith("manifest.json") else f"{seed} {name}")
    return chance.randbytes(chance.randrange(1, 3000))


def names_of(seed: int) -> tuple[str, ...]:
    """The files that the run of this seed leaves: not all of them write an engine."""
    return tuple(name for name in PLANNED if seed % 3 or "engine" not in name)


def fill(seed: int, place: str, names: tuple[str, ...], pause: Callable[[], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data_of(seed, f"{place}/{name}"))
            pause()

    return write


def write_run(writing: Writing, seed: int, pause: Callable[[], None] = lambda: None) -> None:
    """Every kind of placement: folders, one inside another, single files, one of them twice."""
    writing.place("bundle", fill(seed, "bundle", ("a", "sub/b"), pause))
    pause()
    writing.write("run.json", data_of(seed, "run.json"))
    writing.place("onnx", fill(seed, "onnx", ("model.onnx", "manifest.json"), pause))
    if seed % 3:
        writing.place("onnx/engine", fill(seed, "onnx/engine", ("e",), pause))
    writing.write("report.json", b"draft")
    pause()
    writing.write("report.json", data_of(seed, "report.json"))
    writing.record(versions={"seed": str(seed)})


def fake_run(out: Path, seed: int, pause: Callable[[], None] = lambda: None) -> None:
    """A whole run over whatever run lies there."""
    with OutputFolder(out).begin(overwrite=True, planned=PLANNED) as writing:
        write_run(writing, seed, pause)


def wanted(seed: int) -> Files:
    """What such a run leaves."""
    return {name: data_of(seed, name) for name in names_of(seed)}


def files_below(root: Path) -> Files:
    """Every file, links and what is hidden at the top aside, with its bytes; none where there is no folder."""
    found = {
        p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()
    }
    return {name: data for name, data in found.items() if not name.startswith(".")}


def leftovers(root: Path) -> list[str]:
    """Hidden names at the top: half-written things and the lock."""
    return sorted(p.name for p in root.iterdir() if p.name.startswith(".")) if root.exists() else []


def check_consistent(root: Path, before: Files, own: Files) -> None:
    """As it was before, or a run whose manifest names every file that is no user's, and names none falsely.

    own: the user's files, which must all be there.
    """
    now = files_below(root)
    for name, data in own.items():
        assert now.pop(name) == data, f"{name} of the user is lost"
    if now.get("manifest.json") == before.get("manifest.json") and b'"placing": {' not in before.get(
        "manifest.json", b""
    ):
        assert now == {name: data for name, data in before.items() if name not in own}, "the old run is not whole"
        return
    manifest = read_manifest(root)
    del now["manifest.json"]
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in now.items()}
    claimed = {(file.path, file.sha256) for file in manifest.claimed()}
    assert set(hashes.items()) <= claimed, "a file that nobody claims"
    assert {(file.path, file.sha256) for file in manifest.files} <= set(hashes.items()), "a file that is not there"


def check_ended(root: Path, seed: int, own: Files) -> None:
    """A whole run of this seed, the user's files, and nothing else."""
    now = files_below(root)
    del now["manifest.json"]
    assert now == wanted(seed) | own
    manifest = read_manifest(root)
    assert manifest.complete
    assert manifest.placing is None
    assert {file.path for file in manifest.files} == set(wanted(seed))
    assert leftovers(root) == []


def holds_run(root: Path) -> bool:
    try:
        read_manifest(root)
    except DataError:
        return False
    return True


__all__ = ["LOCK", "check_consistent", "check_ended", "fake_run", "files_below", "holds_run", "leftovers", "wanted"]
