"""`erq-export check`: what it prints, its exit codes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Erq
from lint_graphs import block, const, pair

from erq_export.contract.targets import TARGETS, deployable
from erq_export.exporters.lint.check import RULES, table

DOCS = Path(__file__).parents[3] / "docs" / "check.md"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A clean graph, one with an error and one with a warning alone, for tensorrt."""
    clean, error, warning = (block("tensorrt") for _ in range(3))
    const(error, "fc.zero", np.int8(3))
    pair(warning, "gelu", 0, "fc")
    made = {}
    for name, model in (("clean", clean), ("error", error), ("warning", warning)):
        made[name] = tmp_path / f"{name}.onnx"
        onnx.save(model, made[name])
    return made


def test_exit_codes(erq: Erq, files: dict[str, Path]) -> None:
    codes = {
        (name, strict): erq("check", files[name], "--target", "tensorrt", *(["--strict"] * strict))[0]
        for name in files
        for strict in (False, True)
    }
    assert codes == {
        ("clean", False): 0,
        ("clean", True): 0,
        ("warning", False): 0,
        ("warning", True): 8,
        ("error", False): 8,
        ("error", True): 8,
    }


def test_the_text_names_node_reason_fix_and_a_sum(erq: Erq, files: dict[str, Path]) -> None:
    _, said = erq("check", files["error"], "--target", "tensorrt")
    lines = said.splitlines()
    assert lines[0] == "error: fc/Q [nonzero-zero-point]"
    assert "zero point 3" in lines[1]
    assert lines[2].startswith("  fix: ")
    assert lines[-1] == f"{files['error']} for tensorrt: 2 errors, no warnings"
    assert erq("check", files["clean"], "--target", "tensorrt")[1].endswith("no errors, no warnings\n")
    assert erq("check", files["warning"], "--target", "tensorrt")[1].endswith("no errors, 1 warning\n")


def test_json_is_one_object_and_nothing_else(erq: Erq, files: dict[str, Path]) -> None:
    code, said = erq("check", files["error"], "--target", "tensorrt", "--json")
    read = json.loads(said)
    assert code == 8
    assert (read["file"], read["target"], read["errors"], read["warnings"]) == (str(files["error"]), "tensorrt", 2, 0)
    assert {f["node"] for f in read["findings"]} == {"fc/Q", "fc/DQ"}
    assert all(set(f) == {"rule", "severity", "node", "reason", "fix"} for f in read["findings"])


def test_what_cannot_be_checked_is_refused(erq: Erq, files: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "notes.onnx"
    text.write_text("no model")
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    for words, says in (
        (["check", tmp_path / "none.onnx", "--target", "onnx"], "there is no file"),
        (["check", tmp_path, "--target", "onnx"], "there is no file"),
        (["check", text, "--target", "onnx"], "is not an ONNX model"),
        (["check", empty, "--target", "onnx"], "is not an ONNX model"),
        (["check", files["clean"], "--target", "tensorflow"], "unknown target 'tensorflow'"),
        (["check", files["clean"]], "--target is missing"),
        (["check"], "FILE is missing"),
    ):
        code, said = erq(*words)
        assert code == 2, words
        assert says in said
        assert "fix: " in said


def test_large_weights_may_lie_beside_the_file(erq: Erq, tmp_path: Path) -> None:
    """They are not read: the file checks without them."""
    path = tmp_path / "external.onnx"
    onnx.save(block("tensorrt"), path, save_as_external_data=True, location="weights.bin", size_threshold=1000)
    (tmp_path / "weights.bin").unlink()
    assert erq("check", path, "--target", "tensorrt")[0] == 0


def test_it_loads_neither_torch_nor_onnxruntime(files: dict[str, Path]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['erq-export', 'check', {str(files['clean'])!r}, '--target', 'tensorrt']\n"
        "from erq_export.cli.app import app\n"
        "app(standalone_mode=False)\n"
        "print('HEAVY', sorted({'torch', 'onnxruntime', 'timm'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in said


def test_rules_are_listed_and_documented(erq: Erq) -> None:
    code, said = erq("check", "--rules")
    assert code == 0
    assert said.strip() == table()
    assert len(said.splitlines()) == len(RULES) + 2
    assert table() in DOCS.read_text(encoding="utf-8")
    assert all(f"--target {target}" in DOCS.read_text(encoding="utf-8") for target in deployable(TARGETS))
