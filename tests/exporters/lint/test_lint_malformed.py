"""`check` answers whatever file it is given with findings or with a clear error: no traceback, no hang, little memory."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import Erq
from lint_graphs import block, const, conv, gemm, node
from lint_malformed import EVERY, Malformed, attr, external, function, functions, nested
from lint_mutations import mutated
from lint_plants import PLANTS
from onnx import TensorProto, helper

from erq_export.contract.errors import DataError, ErqError
from erq_export.exporters.lint.check import Checked, check

SECONDS = 5  # for one small file; the slowest takes a tenth of a second
RANDOM_FILES = 1500


class TooSlow(BaseException):
    """Not an Exception: nothing on the way may swallow it."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(_signal: int, _frame: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_a_malformed_file_is_refused_with_its_reason(kind: Malformed, erq: Erq, tmp_path: Path) -> None:
    """The same words in both forms of output, exit code 2, a fix, and nothing written."""
    folder = tmp_path / "model"
    folder.mkdir()
    kind.write(folder / "graph.onnx")
    before = sorted(path.name for path in folder.iterdir())
    for form in ([], ["--json"]):
        with limited(SECONDS):
            code, said = erq("check", folder / "graph.onnx", "--target", "tensorrt", *form)
        assert code == 2, said
        assert kind.says in said
        assert said.startswith("error: ")
        assert "\n  fix: " in said
        assert len(said) < 2000
        assert said.count("\n") == 2
    assert sorted(path.name for path in folder.iterdir()) == before


def test_kinds_have_names_of_their_own() -> None:
    assert len({kind.name for kind in EVERY}) == len(EVERY) >= 80
    assert all(kind.says for kind in EVERY)


@pytest.mark.parametrize("name", ["nested 1000 deep", "cycle", "scales of 2 TiB", "functions that multiply", "pipe"])
def test_the_command_itself_answers_in_little_time_and_memory(name: str, tmp_path: Path) -> None:
    kind = next(kind for kind in EVERY if kind.name == name)
    kind.write(tmp_path / "graph.onnx")
    ended = subprocess.run(
        [sys.executable, "-m", "erq_export.cli", "check", "graph.onnx", "--target", "onnx", "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=20,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)),
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert kind.says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_file_that_may_not_be_read_is_refused(erq: Erq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the system's answer is made up."""

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "graph.onnx"
    onnx.save(block("onnx"), path)
    monkeypatch.setattr(Path, "open", refuse)
    code, said = erq("check", path, "--target", "onnx")
    assert (code, "cannot read" in said, "Permission denied" in said) == (2, True, True)


# ---------------------------------------------------------------- odd, and judged all the same


def rules(path: Path, target: str = "tensorrt") -> set[str]:
    with limited(SECONDS):
        return {f.rule for f in check(path, target).findings}


def written(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, -np.inf, np.nan])
def test_scales_that_are_no_scales_are_findings(bad: float, tmp_path: Path) -> None:
    model = block("tensorrt")
    const(model, "fc.q_scale", np.float16(bad))
    const(model, "qkv.weight_scale", np.full((3, 96), bad, np.float16))
    assert {"bad-scale", "pair-disagrees", "scale-shape"} <= rules(written(model, tmp_path / "graph.onnx"))


@pytest.mark.parametrize("shape", [(0,), (0, 7), (1, 1, 1, 1), (2**20,)])
def test_scales_of_any_shape_are_judged(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = block("tensorrt")
    for name in ("fc.q_scale", "fc.dq_scale", "fc.weight_scale"):
        const(model, name, np.full(shape, 0.5, np.float16))
    const(model, "merged", np.zeros(shape, np.int64))
    assert "scale-shape" in rules(written(model, tmp_path / "graph.onnx"))


@pytest.mark.parametrize("axis", [9, -9, 2**62, -(2**63)])
def test_an_axis_out_of_range_is_a_finding(axis: int, tmp_path: Path) -> None:
    model = block("tensorrt")
    const(model, "fc.weight_scale", np.full(32, 0.5, np.float16))
    const(model, "fc.weight_zero", np.zeros(32, np.int8))
    attr("fc/weight/DQ", "axis", axis)(model)
    assert "scale-shape" in rules(written(model, tmp_path / "graph.onnx"))


def test_names_are_shown_on_one_line(tmp_path: Path) -> None:
    """No terminal is steered and no finding forged by a name."""
    model = block("tensorrt")
    node(model, "fc/Q").name = "a\nerror: b\x1b[2J\u202e" + "x" * 100_000
    const(model, "fc.zero", np.int8(3))
    checked = check(written(model, tmp_path / "graph.onnx"), "tensorrt")
    lines = checked.as_text().splitlines()
    assert len(lines) == 3 * len(checked.findings) + 1
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert r"a\nerror: b\x1b[2J\u202e" in checked.as_text()


def test_a_path_that_is_not_utf8_is_shown(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx"))
    checked = check(written(block("tensorrt"), path), "tensorrt")
    assert json.loads(checked.as_json())["file"].endswith("\\udcff.onnx")
    assert checked.as_text().encode().endswith(b"no errors, no warnings")
    with pytest.raises(DataError, match="malformed"):
        check(written(onnx.ModelProto(ir_version=10), path), "tensorrt")


def test_what_only_looks_odd_is_judged(tmp_path: Path) -> None:
    """Unsorted nodes, a subgraph, a function, a sequence, huge metadata, weights that lie elsewhere or are missing."""
    model = block("tensorrt")
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    nested(5)(model)
    functions(function("f0", "f1", "f1"), function("f1", "Identity"))(model)
    model.metadata_props.add(key="k" * 10**6, value="v" * 10**6)
    sequence = helper.make_tensor_sequence_value_info("sequence", TensorProto.FLOAT, None)
    model.graph.input.append(sequence)
    external("fc.weight", "weights/data.bin", offset=4096, length=1024)(model)
    assert rules(written(model, tmp_path / "graph.onnx")) == set()


def test_scales_beside_the_model_are_read_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = block("tensorrt")
    external("fc.weight_scale", "data.bin", offset=2)(model)
    written(model, tmp_path / "graph.onnx")
    (tmp_path / "data.bin").write_bytes(b"\0\0" + np.float16(0).tobytes())
    monkeypatch.chdir(tmp_path)
    assert rules(Path("graph.onnx")) == rules(tmp_path / "graph.onnx") == {"bad-scale"}


def test_a_long_chain_takes_no_quadratic_time(tmp_path: Path) -> None:
    """4,000 movements, a dequantizer behind each: all of them come from one quantizer."""
    model = block("tensorrt")
    last = "fc/Q.out"
    for i in range(4000):
        for op, reads in (("Identity", [last]), ("DequantizeLinear", [last, "fc.dq_scale"])):
            model.graph.node.append(helper.make_node(op, reads, [f"{op}{i}"]))
        last = f"Identity{i}"
    with limited(20):
        check(written(model, tmp_path / "graph.onnx"), "tensorrt")


# ---------------------------------------------------------------- at random


def graphs() -> list[tuple[str, onnx.ModelProto]]:
    """Clean and planted ones of both targets."""
    made = [(target, graph(target)) for target in ("onnx", "tensorrt") for graph in (block, conv, gemm)]
    for plant in PLANTS:
        model = plant.clean(plant.target)
        plant.damage(model)
        made.append((plant.target, model))
    return [(target, model) for target, model in made if model.ByteSize() < 60_000]


def outcome(data: bytes, path: Path, target: str) -> Checked | ErqError:
    """Anything else is raised; the file then stays, and its name is the seed's."""
    path.write_bytes(data)
    try:
        with limited(SECONDS):
            checked = check(path, target)
            json.loads(checked.as_json())
            checked.as_text().encode()
            answer: Checked | ErqError = checked
    except ErqError as e:
        answer = e
    path.unlink()
    return answer


def test_random_damage_ends_in_findings_or_in_a_clear_error(tmp_path: Path) -> None:
    """Reproducible: a seed gives one file. Both outcomes must occur often, else nothing is tested."""
    originals, refused = graphs(), 0
    for seed in range(RANDOM_FILES):
        random = Random(seed)
        target, model = random.choice(originals)
        answer = outcome(mutated(model, random), tmp_path / f"{seed}.onnx", target)
        if isinstance(answer, ErqError):
            refused += 1
            assert (answer.exit_code, bool(answer.fix), len(str(answer)) < 3000) == (2, True, True)
    assert RANDOM_FILES / 5 < refused < RANDOM_FILES * 4 / 5


def test_a_flipped_bit_is_survived_wherever_it_is(tmp_path: Path) -> None:
    """One bit of every third byte of a graph with little but structure in it."""
    model = gemm("onnx")
    const(model, "gemm.weight", np.zeros((32, 0), np.int8))
    whole = model.SerializeToString()
    for at in range(0, len(whole), 3):
        flipped = whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :]
        answer = outcome(flipped, tmp_path / f"{at}.onnx", "onnx")
        assert not isinstance(answer, ErqError) or answer.exit_code == 2
