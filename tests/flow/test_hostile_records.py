"""Records that a stranger hands over beside a bundle: an engine's, a run's manifest, and a folder that schemas go to."""

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import reports
from command_line import MODEL, Erq, start, write_images
from hostile_runs import FILES, changed_record, written
from malformed import value_or_error

from erq_export.contract.engine import EngineRecord
from erq_export.contract.errors import DataError, ErqError
from erq_export.contract.records import decode, encode, from_plain, read
from erq_export.contract.run_manifest import RunManifest
from erq_export.flow.job import Job
from erq_export.flow.records import schemas
from erq_export.flow.reproduce import asked, verdicts

N_ENGINES, N_MANIFESTS = 200, 300
ENGINE = "onnx/engine/engine.json"


def state(root: Path) -> dict[str, tuple[int, int, int]]:
    """Kind, size and time of everything below a folder, links not followed; our locks aside."""
    found = {p: p.lstat() for p in root.rglob("*") if not p.name.startswith(".erq-export")}
    return {str(p): (s.st_mode, s.st_size, s.st_mtime_ns * (not p.is_dir())) for p, s in found.items()}


def check_refused(code: int, said: str) -> None:
    assert code == 2, said
    assert (said.count("error: "), said.count("\n  fix: ")) == (1, 1), said
    assert "Traceback" not in said
    assert all(c.isprintable() or c == "\n" for c in said)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the record of an engine that nobody built."""
    folder = tmp_path_factory.mktemp("run")
    write_images(folder / "photos", 4, size=16)
    words = [*MODEL, "--no-pretrained", "--bits", "w4a4", "--calib", "4", "--no-store"]
    process = start(*words, "--data", folder / "photos", "--out", folder / "out")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return folder / "out"


@pytest.fixture
def run(finished: Path) -> Iterator[Path]:
    """The run, and as it was for the next test."""
    kept = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    (finished / ENGINE).parent.mkdir(exist_ok=True)
    (finished / ENGINE).write_bytes(encode(reports.engine()))
    yield finished
    for path in sorted(finished.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept or not path.is_file() or path.is_symlink():
            path.unlink()
    for path, data in kept.items():
        path.write_bytes(data)


# ---------------------------------------------------------------- an engine's record


def shown_run(folder: Path) -> Path:
    """A folder whose report speaks of an engine, as `inspect` reads it."""
    for name, record in (
        ("report.json", reports.report()),
        ("onnx/manifest.json", reports.manifest()),
        (ENGINE, reports.engine()),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(record))
    return folder


def test_an_engines_record_changed_anywhere_is_shown_or_refused(tmp_path: Path, erq: Erq) -> None:
    path = shown_run(tmp_path / "out") / ENGINE
    data, n_refused = json.loads(path.read_text()), 0
    for i in range(N_ENGINES):
        path.write_bytes(written(changed := changed_record(random.Random(f"engine {i}"), data)))
        takes = not isinstance(value_or_error(lambda: read(EngineRecord, path)), ErqError)
        before = state(tmp_path)
        code, said = erq("inspect", tmp_path / "out")
        assert (code == 0) == takes, (changed, said)
        if not takes:
            n_refused += 1
            check_refused(code, said)
            assert "engine.json" in said
        assert state(tmp_path) == before
    assert N_ENGINES / 2 < n_refused < N_ENGINES


@pytest.mark.parametrize(
    ("command", "what"),
    [(c, what) for c in ("inspect", "validate") for what in FILES if (c, what) != ("validate", "nothing")],
)  # a run without an engine is validated without one
def test_something_else_in_the_place_of_an_engines_record(
    run: Path, tmp_path: Path, erq: Erq, command: str, what: str
) -> None:
    out = shown_run(tmp_path / "out") if command == "inspect" else run
    FILES[what](out / ENGINE)
    before = state(out)
    code, said = erq(command, out, *["--no-store"] * (command == "validate"))
    check_refused(code, said)
    assert ENGINE in said
    assert state(out) == before


def test_validate_refuses_a_changed_record_of_an_engine(run: Path, erq: Erq) -> None:
    data, n = json.loads((run / ENGINE).read_text()), 0
    for i in range(60):
        changed = written(changed_record(random.Random(f"validate {i}"), data))
        if isinstance(value_or_error(lambda changed=changed: decode(EngineRecord, changed, source="it")), ErqError):
            n += 1
            (run / ENGINE).write_bytes(changed)
            before = state(run)
            check_refused(*erq("validate", run, "--no-store"))
            assert state(run) == before
    assert n > 30


@pytest.mark.parametrize("what", FILES)
def test_build_loses_no_engine_that_the_run_did_not_write(run: Path, erq: Erq, what: str) -> None:
    """Beside it lies an engine.json that no manifest lists: whatever it is, it stays."""
    FILES[what](run / ENGINE)
    before = state(run)
    code, said = erq("build", run, "--no-store")
    if what == "nothing":
        assert code == 0, said
    else:
        check_refused(code, said)
        assert ENGINE in said
        assert state(run) == before


# ---------------------------------------------------------------- a run's manifest, given to `reproduce`


def test_a_manifest_changed_anywhere_is_read_or_refused_and_its_verdicts_are_words(run: Path) -> None:
    """In place of making it again, which takes seconds: compared with the run itself."""
    path, now = run.parent / "changed.json", read(RunManifest, run / "manifest.json")
    data, given, n_refused = json.loads((run / "manifest.json").read_text()), given_of(now), 0
    before = state(run)
    for i in range(N_MANIFESTS):
        path.write_bytes(written(changed := changed_record(random.Random(f"manifest {i}"), data)))
        found = value_or_error(lambda: asked(path))
        if isinstance(found, ErqError):
            n_refused += 1
            assert isinstance(found, DataError), changed
            assert found.fix
        else:
            was, job = found
            assert isinstance(job, Job)
            assert all(verdict.says() for verdict in verdicts(was, run, now, run, given)), changed
    path.unlink()
    assert N_MANIFESTS / 2 < n_refused < N_MANIFESTS
    assert state(run) == before


def given_of(now: RunManifest) -> dict[str, dict[str, str]]:
    return {"weights": dict(now.weights), "images": dict(now.images)}


@pytest.mark.parametrize("what", FILES)
def test_what_is_no_manifest_is_not_made_again(run: Path, tmp_path: Path, erq: Erq, what: str) -> None:
    (tmp_path / "manifest.json").write_bytes((run / "manifest.json").read_bytes())
    FILES[what](tmp_path / "manifest.json")
    before = state(tmp_path)
    check_refused(*erq("reproduce", tmp_path / "manifest.json", "--out", tmp_path / "again"))
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "local-dir:."),
        ("name", "hf-hub:a/b"),
        ("name", "../vit"),
        ("checkpoint", "payload.pth"),
        ("checkpoint", "/dev/zero"),
        ("model_args", {"checkpoint_path": "payload.pth"}),
        ("model_args", {"img_size": 10**5}),
        ("model_args", {"num_classes": 10**8}),
    ],
)
def test_a_job_that_asks_for_something_else_than_a_model_is_refused(
    run: Path, tmp_path: Path, erq: Erq, monkeypatch: pytest.MonkeyPatch, field: str, value: object
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.pth").write_bytes(b"\x80\x02cos\nmkdir\n(X\x08\x00\x00\x00executedtR.")
    data = json.loads((run / "manifest.json").read_text())
    data["job"]["model"][field] = value
    (tmp_path / "manifest.json").write_bytes(written(data))
    before = state(tmp_path)
    code, said = erq("reproduce", tmp_path / "manifest.json")
    assert code in (2, 3), said
    assert "\n  fix: " in said
    assert state(tmp_path) == before


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize(
    "name", ["bundle/bundle.json", "bundle/tensors.safetensors", "onnx/model.onnx", "onnx/manifest.json"]
)
def test_whatever_lies_beside_a_manifest_just_differs(run: Path, name: str, what: str, tmp_path: Path) -> None:
    """Links are not followed out of the folder, and what cannot be read is named."""
    data = json.loads((run / "manifest.json").read_text())
    now = from_plain(RunManifest, {k: v for k, v in data.items() if k != "format"}, source="it")
    other = copy.deepcopy(data)
    next(file for file in other["files"] if file["path"] == name)["sha256"] = "0" * 64
    was = from_plain(RunManifest, {k: v for k, v in other.items() if k != "format"}, source="it")
    for path in run.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(run)).write_bytes(path.read_bytes())
    FILES[what](tmp_path / name)
    before = state(tmp_path)
    found = [v for v in verdicts(was, tmp_path, now, run, given_of(now)) if v.differs is not None]
    assert [v.what for v in found] == [name.split("/")[0]]
    assert str(found[0].differs).startswith(f"{name} differs")
    assert "root:" not in found[0].says()
    assert state(tmp_path) == before


# ---------------------------------------------------------------- schemas


def test_schemas_are_written_into_a_new_folder_and_over_former_ones(tmp_path: Path, erq: Erq) -> None:
    for _ in range(2):
        code, said = erq("schemas", tmp_path / "a" / "b")
        assert code == 0, said
        assert {p.name: p.read_text() for p in (tmp_path / "a" / "b").iterdir()} == schemas()
        (tmp_path / "a" / "b" / "run.json").write_text('{"$ref": "#/$defs/Older", "$defs": {}}')


PLACES: dict[str, Callable[[Path], str]] = {
    "empty": lambda root: "",
    "spaces": lambda root: "  ",
    "NUL": lambda root: "a\0b",
    "a file": lambda root: str(root / "text"),
    "below a file": lambda root: str(root / "text" / "below"),
    "a pipe": lambda root: str(root / "pipe"),
    "a device": lambda root: "/dev/null",
    "a link to nowhere": lambda root: str(root / "dangling"),
    "a link to itself": lambda root: str(root / "loop"),
    "a name too long": lambda root: str(root / ("x" * 300)),
    "a path too long": lambda root: str(root / "/".join(["x" * 200] * 30)),
    "no file system for it": lambda root: "/proc/erq/export",
}


@pytest.mark.parametrize("place", PLACES)
def test_schemas_refuse_what_is_no_folder(
    tmp_path: Path, erq: Erq, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("years of work")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = state(tmp_path)
    check_refused(*erq("schemas", PLACES[place](tmp_path)))
    assert state(tmp_path) == before


@pytest.mark.parametrize("what", [what for what in FILES if what != "nothing"])
def test_schemas_replace_nothing_but_schemas(tmp_path: Path, erq: Erq, what: str) -> None:
    """A run's folder has a run.json and a report.json, too."""
    (tmp_path / "run.json").write_bytes(encode(reports.run_record()))
    FILES[what](tmp_path / "run.json")
    before = state(tmp_path)
    check_refused(*erq("schemas", tmp_path))
    assert state(tmp_path) == before


def test_schemas_leave_a_run_as_it_is(run: Path, erq: Erq) -> None:
    before = state(run)
    check_refused(*erq("schemas", run))
    assert state(run) == before


def test_schemas_into_a_folder_whose_name_is_no_text(tmp_path: Path, erq: Erq) -> None:
    code, said = erq("schemas", tmp_path / os.fsdecode(b"\xff\xfe"))
    assert code == 0, said
    assert len(list((tmp_path / os.fsdecode(b"\xff\xfe")).iterdir())) == len(schemas())
