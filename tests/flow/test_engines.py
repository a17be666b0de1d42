"""An engine is loaded where its record fits file, graph, version and GPU; else it is refused, with the command that builds it."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs
from reports import engine as example

from erq_export.contract.engine import EngineRecord, Gpu
from erq_export.contract.errors import EngineError, ErqError, MachineError
from erq_export.contract.files import graph_sha256
from erq_export.contract.records import encode, read
from erq_export.flow import engines
from erq_export.flow.engines import Here, checked, engine_runner, unfit

BLOB = b"an engine" * 100
ADA, AMPERE, TURING = (Gpu(name=f"GPU {c}", capability=c) for c in ("8.9", "8.6", "7.5"))
FITS = Here(version="1.7.1", gpu=ADA)


def here(given: Here = FITS) -> Callable[[str], Here]:
    return lambda package: given


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """OUT/tensorrt-rtx with a graph, an engine and its record."""
    folder = tmp_path / "out" / "tensorrt-rtx"
    (folder / "engine").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"a graph")
    path = folder / "engine" / "model.engine"
    path.write_bytes(BLOB)
    rewrite(path, bytes=len(BLOB), engine_sha256=hashlib.sha256(BLOB).hexdigest(), gpu=None)
    rewrite(path, graph_sha256=graph_sha256(folder / "model.onnx"), compute_capabilities=("8.9",))
    return path


def rewrite(path: Path, **changes: object) -> None:
    record_path = path.parent / "engine.json"
    record = read(EngineRecord, record_path) if record_path.exists() else example()
    record_path.write_bytes(encode(structs.replace(record, **changes)))


def refused(path: Path, given: Here = FITS, **options: object) -> ErqError:
    with pytest.raises((EngineError, MachineError)) as caught:
        checked(path, here=here(given), **options)  # type: ignore[arg-type]
    return caught.value


def test_what_fits_is_loaded_wherever_the_folder_lies(engine: Path, tmp_path: Path) -> None:
    record, blob = checked(engine, here=here())
    assert blob == BLOB
    assert record is not None
    assert record.version == "1.7.1"
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "out", moved)
    assert checked(moved / "tensorrt-rtx" / "engine" / "model.engine", here=here())[1] == BLOB


def test_a_graph_of_another_byte_is_another_graph(engine: Path) -> None:
    engine.parents[1].joinpath("model.onnx").write_bytes(b"a grapH")
    error = refused(engine)
    assert (error.exit_code, "another graph" in error.problem) == (6, True)
    assert f"erq-export build {engine.parents[2]} --to tensorrt-rtx --batch 1,8,32" in error.fix


def test_a_graph_that_is_gone_is_missed_only_where_it_was_named(engine: Path) -> None:
    graph = engine.parents[1] / "model.onnx"
    graph.unlink()
    assert checked(engine, here=here())[1] == BLOB
    assert "no graph" in refused(engine, graph=graph).problem


@pytest.mark.parametrize(
    ("blob", "says"),
    [(BLOB[:-1], "truncated"), (b"", "truncated"), (BLOB + b"x", "changed"), (BLOB[:-1] + b"x", "damaged")],
)
def test_a_damaged_engine_is_refused(engine: Path, blob: bytes, says: str) -> None:
    engine.write_bytes(blob)
    error = refused(engine)
    assert (error.exit_code, says in error.problem) == (6, True)
    assert "erq-export build" in error.fix


def test_an_engine_without_a_record_is_code_that_nobody_vouches_for(engine: Path) -> None:
    (engine.parent / "engine.json").unlink()
    error = refused(engine)
    assert error.exit_code == 6
    assert "runs its code" in error.problem
    assert "erq-export build" in error.fix
    assert "--trust-engine" in error.fix
    assert checked(engine, trust=True, here=here()) == (None, BLOB)


@pytest.mark.parametrize("trust", [False, True])
def test_trust_is_no_cure_for_a_record_that_does_not_fit(engine: Path, trust: bool) -> None:
    engine.write_bytes(BLOB[:-1])
    assert "truncated" in refused(engine, trust=trust).problem
    (engine.parent / "engine.json").write_text("{}")
    error = refused(engine, trust=trust)
    assert (error.exit_code, "format" in error.problem) == (6, True)
    assert "erq-export build" in error.fix


def test_a_missing_engine_is_named(engine: Path) -> None:
    engine.unlink()
    error = refused(engine)
    assert (error.exit_code, "cannot read" in error.problem) == (6, True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Here(version="1.8.0", gpu=ADA), "was built with tensorrt_rtx 1.7.1, here is 1.8.0"),
        (Here(version="1.7.1", gpu=AMPERE), r"compute capability 8.9, here is GPU 8.6 (8.6)"),
        (Here(version="1.7.1", gpu=None), "needs a GPU (compute capability 8.9)"),
    ],
)
def test_another_machine_is_another_exit_code(engine: Path, given: Here, says: str) -> None:
    error = refused(engine, given)
    assert (error.exit_code, says in error.problem) == (3, True), error.problem
    assert "erq-export build" in error.fix


def test_a_missing_package_says_how_it_is_installed(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    error = refused(engine, Here(version=None, gpu=ADA))
    assert (error.exit_code, "pip install" in error.fix) == (3, True)


def test_the_file_is_judged_before_the_machine(engine: Path) -> None:
    """A damaged engine is damaged everywhere: another machine would not help."""
    engine.write_bytes(BLOB[:-1])
    assert refused(engine, Here(version=None, gpu=None)).exit_code == 6


@pytest.mark.parametrize(
    ("gpu", "flags", "runs_on", "not_on"),
    [
        (ADA, (), (ADA,), (AMPERE, Gpu(name="another", capability="8.9"))),
        (ADA, ("hardware=capability",), (ADA, Gpu(name="another", capability="8.9")), (AMPERE,)),
        (ADA, ("hardware=ampere",), (ADA, AMPERE, Gpu(name="new", capability="12.0")), (TURING,)),
        (None, (), (ADA,), (AMPERE, TURING)),
    ],
)
def test_an_engine_runs_on_the_gpus_it_was_built_for(
    gpu: Gpu | None, flags: tuple[str, ...], runs_on: tuple[Gpu, ...], not_on: tuple[Gpu, ...]
) -> None:
    record = structs.replace(example(), gpu=gpu, flags=flags, compute_capabilities=("8.9",))
    assert [unfit(record, it) for it in runs_on] == [None] * len(runs_on)
    assert all(unfit(record, it) for it in not_on)


def test_of_default_targets_the_package_decides() -> None:
    assert unfit(structs.replace(example(), gpu=None, compute_capabilities=()), TURING) is None


def test_an_engine_for_any_version_is_not_held_to_its_own(engine: Path) -> None:
    rewrite(engine, flags=("any_version",))
    assert checked(engine, here=here(Here(version="1.8.0", gpu=ADA)))[1] == BLOB


def test_the_command_of_a_twin_builds_the_twin(engine: Path, tmp_path: Path) -> None:
    twin = tmp_path / "out" / "twin" / "tensorrt-rtx"
    shutil.copytree(engine.parents[1], twin)
    (twin / "engine" / "model.engine").write_bytes(b"")
    error = refused(twin / "engine" / "model.engine")
    assert f"erq-export build {tmp_path / 'out'} --to tensorrt-rtx --twin --batch 1,8,32" in error.fix
    loose = shutil.copytree(engine.parent, tmp_path / "loose")
    (loose / "model.engine").write_bytes(b"")
    assert refused(loose / "model.engine").fix.endswith("build it again from its graph on this machine")


def test_the_command_of_a_detectors_part_builds_its_target(engine: Path, tmp_path: Path) -> None:
    """In the batches of the parts: none is named."""
    part = shutil.copytree(engine.parents[1], tmp_path / "detector" / "tensorrt-rtx" / "box")
    (part / "engine" / "model.engine").write_bytes(b"")
    error = refused(part / "engine" / "model.engine")
    assert error.fix.endswith(f"erq-export build {tmp_path / 'detector'} --to tensorrt-rtx")


def test_nothing_is_loaded_before_it_was_judged(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    monkeypatch.setattr(engines, "LoadedEngine", lambda blob, **_: seen.append(blob))
    (engine.parent / "engine.json").unlink()
    with pytest.raises(EngineError):
        engine_runner(engine, here=here())
    assert seen == []
