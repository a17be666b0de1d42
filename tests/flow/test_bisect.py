"""`erq-export validate OUT --bisect` names the first place that differs, and leaves what shows it again."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import MODEL, QUICK, Erq, start, write_images
from msgspec import structs
from parity_fixtures import constant, damaged
from parity_plants import q_and_k_exchanged, row, ulp
from reports import engine

import erq_export
from erq_export.contract.bisection import Bisection
from erq_export.contract.engine import ENGINE
from erq_export.contract.files import file_sha256, graph_sha256
from erq_export.contract.output.folder import RECORD, REPRODUCTION, OutputFolder
from erq_export.contract.records import encode, read
from erq_export.flow.bisect import _foreign

SITE = "blocks.1.mlp.fc1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one model, calibrated with other ridges."""
    folder = tmp_path_factory.mktemp("runs")
    write_images(folder / "photos", 6)
    for name, ridge in (("out", 100), ("other", 1)):
        words = [*MODEL, *QUICK, "--to", "onnx", "-O", f"ridge={ridge}", "--data", folder / "photos"]
        process = start(*words, "--out", folder / name)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "out", tmp_path / "out"))


def listed(out: Path) -> set[str]:
    return {file.path for file in OutputFolder(out).read_run_manifest().files if file.path.startswith("bisect/")}


def test_an_honest_run_has_no_first_difference(erq: Erq, out: Path) -> None:
    code, said = erq("validate", out, "--bisect")
    assert code == 0, said
    assert "onnx: nothing differs: against the fake-quant reference on 4 images and 10 layers" in " ".join(said.split())
    found = read(Bisection, out / "bisect" / "onnx" / RECORD)
    assert (found.first, found.foreign, found.n_differences, found.reproduction) == (None, (), 0, ())
    assert found.checked["blocks"] == 4
    assert found.graph_sha256 == graph_sha256(out / "onnx" / "model.onnx")
    assert listed(out) == {"bisect/onnx/bisect.json"}


def test_a_wrong_row_is_named_and_can_be_seen_again_until_it_is_right(erq: Erq, out: Path) -> None:
    graph, folder = out / "onnx" / "model.onnx", out / "bisect" / "onnx"
    right = graph.read_bytes()
    damaged(graph, graph, row(f"{SITE}.weight_q"))
    code, said = erq("validate", out, "--bisect")
    said = " ".join(said.split())
    assert code == 5
    assert f"the first difference is in blocks.1, {SITE} (weight integers)" in said
    assert "model.onnx is not the file that the run wrote" in said
    found = read(Bisection, folder / RECORD)
    assert found.first is not None
    assert (found.first.bound, found.reproduction) == (0, REPRODUCTION)
    assert listed(out) == {f"bisect/onnx/{name}" for name in (RECORD, *REPRODUCTION)}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**18
    kept = np.load(folder / "tensors.npz")
    (output,) = [name.removeprefix("found/") for name in kept.files if name.startswith("found/")]
    wrong = np.count_nonzero(kept[f"found/{output}"] != kept[f"expected/{output}"])
    assert 0 < wrong <= 17  # one of 128 channels, for the 17 tokens of one image
    ran = subprocess.run([sys.executable, folder / "reproduce.py"], capture_output=True, text=True, check=True)
    assert f"{output}: {wrong} of {17 * 128} differ, relative L2 " in ran.stdout
    assert f"The first difference: blocks.1 {SITE} (weight integers)" in (folder / "README.md").read_text()
    graph.write_bytes(right)
    assert erq("validate", out, "--bisect")[0] == 0
    assert {path.name for path in folder.iterdir()} == {RECORD}


def test_a_stale_graph_is_named_by_its_hash_before_all_else(erq: Erq, finished: Path, out: Path) -> None:
    shutil.copy(finished / "other" / "onnx" / "model.onnx", out / "onnx" / "model.onnx")
    code, said = erq("validate", out, "--bisect")
    assert code == 5
    assert "model.onnx is of another calibration: it names the bundle" in " ".join(said.split())
    found = read(Bisection, out / "bisect" / "onnx" / RECORD)
    assert found.first is not None
    assert found.first.kind == "origin"
    assert found.n_differences > 10  # its integers are others too


def test_a_graph_of_the_other_run_with_its_manifest_is_stale_too(erq: Erq, finished: Path, out: Path) -> None:
    for name in ("model.onnx", "manifest.json"):
        shutil.copy(finished / "other" / "onnx" / name, out / "onnx" / name)
    code, said = erq("validate", out, "--bisect")
    assert code == 5
    assert "manifest.json is of another calibration" in " ".join(said.split())


def test_plain_validate_refuses_a_graph_that_is_not_the_runs(erq: Erq, finished: Path, out: Path) -> None:
    shutil.copy(finished / "other" / "onnx" / "model.onnx", out / "onnx" / "model.onnx")
    code, said = erq("validate", out)
    assert code == 2
    assert "is not the file that the run wrote" in " ".join(said.split())


def test_what_is_no_graph_is_refused_as_foreign(erq: Erq, out: Path) -> None:
    (out / "onnx" / "model.onnx").write_bytes(b"no graph")
    code, said = erq("validate", out, "--bisect")
    assert code == 2
    assert "is not the file that the run wrote" in " ".join(said.split())


def test_python_gets_the_records_and_no_exception(out: Path) -> None:
    graph = out / "onnx" / "model.onnx"
    damaged(graph, graph, ulp(f"{SITE}.act_scale_q"))
    (found,) = erq_export.bisect(out)
    assert found.first is not None
    assert (found.first.site, found.first.kind, found.equal) == (SITE, "input scale", False)
    damaged(graph, graph, q_and_k_exchanged("blocks.0.attn"))
    (found,) = erq_export.bisect(out)
    assert found.first is not None
    assert (found.first.block, found.first.site) == ("blocks.0", "blocks.0.attn.proj")  # it comes first
    assert found.first.found is not None
    assert found.first.bound is not None
    assert found.first.found > found.first.bound


def test_a_bias_that_is_no_number_is_named(out: Path) -> None:
    def change(bias: np.ndarray) -> np.ndarray:
        bias[0] = np.nan
        return bias

    graph = out / "onnx" / "model.onnx"
    damaged(graph, graph, lambda g: constant(g, f"{SITE}.bias", change))
    (found,) = erq_export.bisect(out)
    assert found.first is not None
    assert (found.first.site, found.first.kind) == (SITE, "bias")
    assert "is no number in the file" in found.first.says


def test_an_engine_of_another_graph_is_named(out: Path) -> None:
    """The record of an engine holds the hashes of its graph and of its bytes."""
    folder = OutputFolder(out)
    folder.engine("onnx").mkdir()
    model = folder.engine("onnx") / "model.engine"
    model.write_bytes(b"compiled")
    record = structs.replace(
        engine(), graph_sha256=graph_sha256(folder.graph("onnx")), engine_sha256=file_sha256(model)
    )
    for field, says in (("graph_sha256", "was built from another graph"), ("engine_sha256", "its record describes")):
        (folder.engine("onnx") / ENGINE).write_bytes(encode(record))
        assert list(_foreign(folder, [], "onnx")) == []
        (folder.engine("onnx") / ENGINE).write_bytes(encode(structs.replace(record, **{field: "d" * 64})))
        (found,) = _foreign(folder, [], "onnx")
        assert says in found
