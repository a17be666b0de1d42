"""`build`: engines as they are asked for, beside their twin, in a folder that was moved; killed anywhere, whole or not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import MODEL, QUICK, Erq, write_images

import erq_export
from erq_export.backends.tensorrt import available
from erq_export.contract.engine import Batch, EngineRecord, Gpu
from erq_export.contract.errors import ErqError, SpecError
from erq_export.contract.files import file_sha256, graph_sha256
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.records import read
from erq_export.flow.api import Graph
from erq_export.flow.engines import Here, checked

pytestmark = pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

SCRIPT = Path(__file__).parents[1] / "support" / "kill_builds.py"
N_KILLS = 10
TARGET = "tensorrt-rtx"
BUILD = ("--to", TARGET, "--capability", "8.9")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose bundle fits TensorRT-RTX; where the graph and the engine of it are built is another question."""
    folder = tmp_path_factory.mktemp("run")
    write_images(folder / "photos", 4)
    words = [*MODEL, *QUICK, "-O", "ridge=100", "--to", TARGET, "--capability", "8.9", "--data", folder / "photos"]
    command = [sys.executable, "-m", "erq_export.cli", *map(str, words), "--out", str(folder / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "out"


@pytest.fixture
def out(run: Path, tmp_path: Path) -> Path:
    """The same run, moved to another folder."""
    return shutil.copytree(run, tmp_path / "moved")


def record_of(out: Path) -> EngineRecord:
    return read(EngineRecord, OutputFolder(out).engine(TARGET) / "engine.json")


def test_the_record_knows_its_engine_its_graph_and_its_bundle(run: Path) -> None:
    record, folder = record_of(run), OutputFolder(run)
    engine = folder.engine(TARGET) / "model.engine"
    assert record.engine_sha256 == file_sha256(engine)
    assert record.bytes == engine.stat().st_size
    assert record.graph_sha256 == graph_sha256(folder.graph(TARGET))
    assert record.bundle_sha256 == folder.read_run_manifest().artifacts["bundle"]
    assert (record.gpu, record.compute_capabilities, record.flags) == (None, ("8.9",), ())
    assert (record.version, record.workspace_mib) == (available("tensorrt_rtx"), None)
    assert 0 < record.build_s < 300


def test_a_moved_run_builds_where_it_lies_as_it_is_asked(run: Path, out: Path, erq: Erq) -> None:
    code, said = erq("build", out, *BUILD, "--batch", "1,2,4", "--workspace", "512")
    assert code == 0, said
    before, now = record_of(run), record_of(out)
    assert now.graph_sha256 == before.graph_sha256
    assert now.bundle_sha256 == before.bundle_sha256
    assert (now.batch, now.workspace_mib) == (Batch(smallest=1, optimal=2, largest=4), 512)
    assert before.batch == Batch(smallest=1, optimal=8, largest=32)


def test_a_twin_is_the_float_model_in_float16_beside_it(out: Path, erq: Erq) -> None:
    code, said = erq("build", out, *BUILD, "--twin")
    assert code == 0, said
    folder = OutputFolder(out)
    twin = read(EngineRecord, folder.twin.engine(TARGET) / "engine.json")
    assert twin.plan.gemm == {"float16": 10}
    assert twin.bundle_sha256 is None
    assert twin.graph_sha256 == graph_sha256(folder.twin.graph(TARGET))
    written = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} - {"manifest.json"}
    assert {file.path for file in folder.read_run_manifest().files} == written
    assert record_of(out).plan.gemm == {"int8": 10}
    code, said = erq("build", out, *BUILD)
    assert code == 0, said
    assert (folder.twin.engine(TARGET) / "model.engine").exists()  # a build without --twin leaves it


def test_the_twin_of_other_weights_is_refused(out: Path, erq: Erq) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["weights"] = dict.fromkeys(manifest["weights"], "0" * 64)
    (out / "manifest.json").write_text(json.dumps(manifest))
    code, said = erq("build", out, *BUILD, "--twin")
    assert code == 2
    assert "its weights are others" in said
    assert not OutputFolder(out).twin.path.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--batch", "8,1,32"), "not in rising order"),
        (("--batch", "1,8"), "--batch '1,8'"),
        (("--batch", "0,1,2"), "--batch"),
        (("--batch", "1,8,x"), "--batch"),
        (("--workspace", "0"), "--workspace"),
        (("--hardware", "amper"), "--hardware"),
        (("--hardware", "ampere"), "--capability"),
        (("--any-version",), "--capability"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(
    run: Path, erq: Erq, words: tuple[str, ...], says: str
) -> None:
    before = record_of(run)
    code, said = erq("build", run, *BUILD, *words)
    assert code == 2, said
    assert says in said
    assert record_of(run) == before


PLANTED = {
    "graph of another byte": 6,
    "engine truncated": 6,
    "no record": 6,
    "damaged record": 6,
    "another version": 3,
    "another capability": 3,
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_wrong_engine_is_refused_with_the_command_that_builds_it(out: Path, erq: Erq, what: str) -> None:
    """Who does what it says has an engine that the same machine takes."""
    folder = OutputFolder(out)
    engine, graph = folder.engine(TARGET) / "model.engine", folder.graph(TARGET)
    record, gpu = engine.with_name("engine.json"), Gpu(name="any", capability="8.9")

    def plant() -> None:
        if what == "graph of another byte":
            graph.write_bytes(graph.read_bytes()[:-1] + b"\x01")
        elif what == "engine truncated":
            engine.write_bytes(engine.read_bytes()[:-100])
        elif what == "no record":
            record.unlink()
        elif what == "damaged record":
            record.write_text(record.read_text()[:-40])
        elif what == "another version":
            record.write_text(record.read_text().replace(f'"version": "{record_of(out).version}"', '"version": "0.1"'))

    def here(package: str) -> Here:
        other = Gpu(name="any", capability="8.6")
        return Here(version=available(package), gpu=other if what == "another capability" else gpu)

    plant()
    with pytest.raises(ErqError) as caught:
        checked(engine, here=here)
    assert caught.value.exit_code == PLANTED[what], caught.value.problem
    assert f"erq-export build {out} --to {TARGET}" in caught.value.fix
    for path in (graph, engine, record):
        if f"move {path} away" in caught.value.fix:
            path.unlink()
    if what == "another version":
        record.unlink()  # changed by hand here, else it would be the run's own
    code, said = erq("build", out, "--to", TARGET, "--capability", "8.6" if what == "another capability" else "8.9")
    assert code == 0, said
    assert checked(engine, here=here)[0] is not None


@pytest.mark.slow
def test_a_build_killed_at_ten_moments_leaves_a_whole_engine_or_none(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(run), str(tmp_path / "builds"), "--rounds", str(N_KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["left"].keys() <= {"whole", "absent"}, found
    assert sum(found["left"].values()) == N_KILLS
    assert found["afterwards"] == {"whole": N_KILLS}


@pytest.mark.parametrize("asked", [{"wrokspace": 64}, {"batch": (8, 1, 32)}, {"workspace": 0}], ids=str)
def test_python_refuses_a_wrong_word_before_it_builds(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        erq_export.build(Graph(target="tensorrt-rtx", path=tmp_path / "tensorrt-rtx" / "model.onnx"), **asked)
    assert list(tmp_path.iterdir()) == []
