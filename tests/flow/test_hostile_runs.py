"""A run folder from elsewhere: whatever was done to it, its readers and commands refuse it in words or read what it says."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import MODEL, Erq, start, write_images
from hostile_runs import (
    FILES,
    HOSTILE,
    changed_record,
    changed_tensors,
    hostile_identity,
    put_payload,
    put_tensors,
    tensors_of,
    written,
)
from malformed import value_or_error

from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError, ErqError, MachineError, OutputError, SpecError
from erq_export.contract.output.folder import OutputFolder
from erq_export.flow.job import Job, read_run
from erq_export.models.rebuild import reference_model

LONGEST_S = 20.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with integer attention."""
    folder = tmp_path_factory.mktemp("run")
    write_images(folder / "photos", 4, size=16)
    words = [*MODEL, "--no-pretrained", "--bits", "w4a4", "--calib", "4", "--attention", "int8", "-O", "ridge=100"]
    process = start(*words, "--data", folder / "photos", "--out", folder / "out")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return folder / "out"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def state(root: Path) -> dict[str, tuple[int, int]]:
    found = {p: p.lstat() for p in root.rglob("*")}
    return {str(p): (s.st_mode, s.st_size) for p, s in found.items() if not p.name.startswith(".erq-export")}


def outcome(read: Callable[[], Any], what: object) -> Any:
    """A value or an ErqError with a fix, soon."""
    begin = time.perf_counter()
    try:
        found = value_or_error(read)
    except Exception as e:
        raise AssertionError(f"{what!r:.300}") from e
    assert time.perf_counter() - begin < LONGEST_S, what
    if isinstance(found, ErqError):
        assert isinstance(found, (DataError, OutputError, SpecError, MachineError)), what
        assert found.fix
        assert len(found.problem) < 5000
    return found


def model_of(bundle: Path) -> Any:
    return reference_model(Bundle.load(bundle))


def test_a_description_changed_anywhere(run: Path) -> None:
    path = run / "bundle" / "bundle.json"
    data, n_refused = json.loads(path.read_text()), 0
    for i in range(200):
        path.write_bytes(written(changed := changed_record(random.Random(f"bundle {i}"), data)))
        n_refused += isinstance(outcome(lambda: model_of(run / "bundle"), changed), ErqError)
    assert n_refused > 120  # what else it says of statistics, names and versions is its own business


def test_a_job_changed_anywhere(run: Path) -> None:
    path = run / "run.json"
    data, n_refused = json.loads(path.read_text()), 0
    for i in range(150):
        path.write_bytes(written(changed := changed_record(random.Random(f"run {i}"), data)))
        found = outcome(lambda: read_run(run), changed)
        assert isinstance(found, (Job, DataError)), changed
        n_refused += isinstance(found, DataError)
    assert n_refused > 90


def test_tensors_that_no_calibration_leaves_are_refused(run: Path) -> None:
    tensors = tensors_of(run / "bundle")
    for i in range(150):
        what, changed = changed_tensors(random.Random(f"tensors {i}"), tensors)
        put_tensors(run / "bundle", changed)
        assert isinstance(outcome(lambda: model_of(run / "bundle"), what), DataError), what
    put_tensors(run / "bundle", tensors)
    assert not isinstance(outcome(lambda: model_of(run / "bundle"), "whole again"), ErqError)


def test_a_manifest_changed_anywhere_loses_nothing(run: Path) -> None:
    """The manifest says what --overwrite may remove; no check of the folder removes or follows anything."""
    path = run / "manifest.json"
    data = json.loads(path.read_text())
    (run / "notes.txt").write_text("years of work")
    folder = OutputFolder(run)
    planned = folder.planned(["onnx"])
    for i in range(100):
        path.write_bytes(written(changed := changed_record(random.Random(f"manifest {i}"), data)))
        before = state(run)
        found = outcome(lambda: folder.check(overwrite=True, planned=planned), changed)
        assert found is None or isinstance(found, OutputError), changed
        assert state(run) == before


@pytest.mark.parametrize("name", ["run.json", "bundle/bundle.json", "bundle/tensors.safetensors", "manifest.json"])
@pytest.mark.parametrize("what", FILES)
def test_something_else_in_the_place_of_a_file(run: Path, name: str, what: str) -> None:
    FILES[what](run / name)
    before = state(run)
    readers: dict[str, Callable[[], Any]] = {
        "run.json": lambda: read_run(run),
        "manifest.json": lambda: OutputFolder(run).check(overwrite=True, planned=OutputFolder(run).planned(["onnx"])),
    }
    found = outcome(readers.get(name, lambda: Bundle.load(run / "bundle")), what)
    assert isinstance(found, (DataError, OutputError))
    assert Path(name).name in found.problem
    assert state(run) == before


@pytest.mark.parametrize("codes", [(1, 15), (-15, -1), (5, -5), (0, 16), (-(2**70), 2**70), (0, 10**400)])
def test_a_grid_of_too_many_codes_or_without_zero_is_refused(run: Path, codes: tuple[int, int]) -> None:
    path = run / "bundle" / "bundle.json"
    data = json.loads(path.read_text())
    data["layers"][1]["act"] |= {"qmin": codes[0], "qmax": codes[1]}
    path.write_text(json.dumps(data))
    assert isinstance(outcome(lambda: Bundle.load(run / "bundle"), codes), DataError)


@pytest.mark.parametrize(("field", "value"), HOSTILE, ids=[f"{n}={v!s:.40}" for n, v in HOSTILE])
def test_nothing_that_a_bundle_names_is_loaded(
    run: Path, monkeypatch: pytest.MonkeyPatch, erq: Erq, field: str, value: Any
) -> None:
    monkeypatch.chdir(run.parent)
    trace = run.parent / "executed"
    put_payload(run.parent / "payload.pth", trace)
    path = run / "bundle" / "bundle.json"
    path.write_bytes(written(hostile_identity(json.loads(path.read_text()), field, value)))
    before = state(run.parent)
    assert isinstance(outcome(lambda: model_of(run / "bundle"), value), (DataError, SpecError, MachineError))
    code, said = erq("build", run, "--no-store")
    assert code in (2, 3)
    assert "error: " in said
    assert "fix: " in said
    assert not trace.exists()
    assert state(run.parent) == before


def test_a_model_argument_that_names_a_file_is_not_taken(
    erq: Erq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put_payload(tmp_path / "payload.pth", tmp_path / "executed")
    write_images(tmp_path / "photos", 4)
    base = [*MODEL, "--no-pretrained", "--bits", "w4a4", "--calib", "4", "--data", "photos", "--out", "out"]
    for extra in (
        ["--model-arg", "checkpoint_path=payload.pth"],
        ["--model-arg", "pretrained_cfg={'file': 'payload.pth'}"],
        ["--model-arg", "pretrained_cfg_overlay=payload.pth"],
        ["--model-arg", "cache_dir=."],
        ["--model-arg", "checkpoint_path =payload.pth"],
        ["--checkpoint", "payload.pth"],
    ):
        code, said = erq(*base, *extra)
        assert code == 2, said
        assert "fix: " in said
        assert not (tmp_path / "executed").exists()
        assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the commands themselves


@pytest.mark.parametrize("command", [["build"], ["validate"]])
@pytest.mark.parametrize("name", ["run.json", "bundle/bundle.json", "bundle/tensors.safetensors"])
@pytest.mark.parametrize("what", ["nothing", "half", "deep", "a folder", "a pipe"])
def test_the_commands_refuse_it_and_leave_it(run: Path, erq: Erq, command: list[str], name: str, what: str) -> None:
    FILES[what](run / name)
    before = state(run.parent)
    code, said = erq(*command, run, "--no-store")
    assert code == 2, said
    assert "error: " in said
    assert "fix: " in said
    assert state(run.parent) == before


def test_overwrite_refuses_what_is_not_its_own(run: Path, erq: Erq) -> None:
    photos = write_images(run.parent / "photos", 4, size=16)
    words = [*MODEL, "--no-pretrained", "--bits", "w4a4", "--calib", "4", "--data", photos, "--out", run, "--overwrite"]
    for name in ("manifest.json", "run.json", "bundle/bundle.json", "onnx/model.onnx"):
        (run / name).rename(run / "aside")
        (run / name).symlink_to(run / "aside")
        before = state(run.parent)
        code, said = erq(*words, "--no-store")
        assert code == 2, said
        assert "fix: " in said
        assert state(run.parent) == before
        (run / name).unlink()
        (run / "aside").rename(run / name)


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize(("command", "name"), [("validate", "onnx/manifest.json"), ("inspect", "report.json")])
def test_what_a_graph_claims_and_what_a_report_says_is_read_as_a_strangers(
    run: Path, erq: Erq, command: str, name: str, what: str
) -> None:
    FILES[what](run / name)
    before = state(run.parent)
    code, said = erq(command, run, *["--no-store"] * (command == "validate"))
    assert code == 2, said
    assert "error: " in said
    assert "fix: " in said
    assert state(run.parent) == before


@pytest.mark.parametrize("what", FILES)
def test_a_graph_that_is_none_is_refused(run: Path, erq: Erq, what: str) -> None:
    """A file that cannot be read is bad input, not parity that failed."""
    FILES[what](run / "onnx" / "model.onnx")
    before = state(run)
    code, said = erq("validate", run, "--no-store")
    assert code == 2, said
    assert "model.onnx" in said
    assert "fix: " in said
    assert state(run) == before


def test_a_graph_that_was_changed_is_refused_and_built_again_as_the_fix_says(run: Path, erq: Erq) -> None:
    """One bit of a weight: ONNX Runtime would take it."""
    graph = run / "onnx" / "model.onnx"
    whole = graph.read_bytes()
    model = onnx.load(graph)
    weight = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8)
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    onnx.save(model, graph)
    before = state(run)
    code, said = erq("validate", run, "--no-store")
    assert code == 2, said
    assert "model.onnx is not the file that the run wrote" in said
    assert f"erq-export build {run}" in said
    assert state(run) == before
    graph.rename(run / "aside")
    assert erq("build", run, "--no-store")[0] == 0
    assert graph.read_bytes() == whole
    assert erq("validate", run, "--no-store")[0] == 0


def test_a_graph_that_no_manifest_vouches_for_is_read_as_a_strangers(run: Path, erq: Erq) -> None:
    """The folder's manifest is made to fit the damage: the readers themselves refuse it."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != "onnx/model.onnx"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    for what in ("empty", "half", "noise"):
        shutil.copy(run / "onnx" / "model.onnx", run.parent / "whole")
        FILES[what](run / "onnx" / "model.onnx")
        code, said = erq("validate", run, "--no-store")
        assert code == 2, said
        assert "ONNX Runtime refuses" in said
        shutil.copy(run.parent / "whole", run / "onnx" / "model.onnx")
