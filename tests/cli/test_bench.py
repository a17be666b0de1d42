"""`erq-export bench OUT` on a tiny run: what it writes, what it refuses, and that a slow twin or graph is told apart."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from command_line import MODEL, QUICK, Erq, write_images
from html_page import Page
from onnx import TensorProto, helper

import erq_export
from erq_export.cli.app import app
from erq_export.contract.bench import Bench, BenchSpec
from erq_export.contract.errors import MachineError, SpecError
from erq_export.contract.records import read
from erq_export.flow import measure, pages
from erq_export.validate import contestants, runners
from erq_export.validate.runners import OnnxRuntimeRunner

SHORT = ("--batch", "1", "--samples", "10", "--seconds", "0.05", "--sittings", "2")
FIVE = ("--sittings", "5")  # two show little: Student's quantile of one degree of freedom is 12.7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a graph for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("bench")
    photos = write_images(folder / "photos", 6)
    words = [*MODEL, *QUICK, "--to", "onnx", "--data", str(photos), "--out", str(folder / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return folder / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy elsewhere: a run folder can be moved."""
    shutil.copytree(made, tmp_path / "moved")
    return tmp_path / "moved"


def other_graph(path: Path, size: list[int | str]) -> Path:
    """A graph from elsewhere: the mean of every channel."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, size)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [size[0], 3, 1, 1])
    model = helper.make_model(
        helper.make_graph([helper.make_node("GlobalAveragePool", ["x"], ["y"])], "g", [x], [y]), ir_version=10
    )
    model.opset_import[0].version = 21
    onnx.save(model, path)
    return path


def sections(page: Path) -> dict[str, str]:
    """By title; what stands above the first, the verdict with its speed, left out."""
    return {part.partition("\n")[0]: part.strip() for part in page.read_text().split("\n## ")[1:]}


def test_a_run_is_timed_beside_its_twin_wherever_its_folder_lies(erq: Erq, out: Path, tmp_path: Path) -> None:
    theirs = other_graph(tmp_path / "theirs.onnx", ["b", 3, 16, 16])
    before = sections(out / "report.md")
    code, said = erq("bench", out, *SHORT, "--threads", "1", "--with", "torch", "--against", theirs)
    assert code == 0, said
    found = read(Bench, out / "bench.json")
    names = {line.name: line.role for line in found.lines}
    assert (
        names.items()
        >= {
            "float32 in onnxruntime": "twin",
            "float32 in torch": "twin",
            "onnx in onnxruntime": "ours",
            "theirs.onnx in onnxruntime": "foreign",
        }.items()
    )
    assert {(line.batch, line.threads) for line in found.lines} == {(1, 1)}
    assert found.lines[0].speedup is None
    assert all(line.speedup and line.speedup.than == "float32 in onnxruntime" for line in found.lines[1:5])
    assert found.cores
    assert "onnx in onnxruntime" in said
    assert sections(out / "report.md").keys() - before.keys() == {"Speed"}
    assert {title: text for title, text in sections(out / "report.md").items() if title in before} == before
    speed = Page((out / "report.html").read_text()).tables["speed"][0]
    assert [row[0] for row in speed.rows[1:]] == [line.name for line in found.lines]
    assert (out / "bench.svg").exists()
    listed = (out / "manifest.json").read_text()
    assert all(name in listed for name in ("bench.json", "bench.svg", "report.html"))
    code, said = erq("validate", out)
    assert code == 0, said
    assert "## Speed" in (out / "report.md").read_text()  # the same bundle: the section stays
    assert "speed" in Page((out / "report.html").read_text()).tables


def test_a_planted_slowdown_closes_the_gate_once_all_is_written(
    erq: Erq, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = OnnxRuntimeRunner.prepared

    def slowed(self: OnnxRuntimeRunner, pixels: object) -> Callable[[], None]:
        run = prepared(self, pixels)  # type: ignore[arg-type]

        def sleeps() -> None:
            time.sleep(0.02 if self.name.startswith("onnx ") else 0.01)
            run()

        return sleeps

    monkeypatch.setattr(OnnxRuntimeRunner, "prepared", slowed)
    code, said = erq("bench", out, *SHORT, *FIVE, "--require-speedup", "0.8")
    assert code == 7, said
    found = read(Bench, out / "bench.json")
    assert len(found.problems) == 1
    assert "PROBLEM" in (out / "report.md").read_text()
    assert "FAILED (" in Page((out / "report.html").read_text()).first_line  # the page's verdict counts the speed gate
    assert "PROBLEM" in said
    assert "Not shown to be faster" in said
    code, said = erq("bench", out, *SHORT, *FIVE, "--require-speedup", "0.3")
    assert code == 0, said


def refusals(tmp_path: Path) -> dict[str, tuple[list[str], int, str]]:
    text = tmp_path / "text.onnx"
    text.write_text("no graph")
    fixed = other_graph(tmp_path / "fixed.onnx", ["b", 3, 99, 99])
    (tmp_path / "foreign.engine").write_bytes(b"code")
    return {
        "batch 0": (["--batch", "0"], 2, "--batch"),
        "batch of text": (["--batch", "1,x"], 2, "--batch 'x' is no number"),
        "twice": (["--batch", "1,1"], 2, "twice"),
        "no threads": (["--threads", "0"], 2, "--threads"),
        "no sitting": (["--sittings", "0"], 2, "--sittings"),
        "no time": (["--seconds", "0"], 2, "--seconds"),
        "no samples": (["--samples", "1"], 2, "--samples"),
        "unknown runner": (["--with", "tensorflow"], 2, "tensorflow"),
        "no GPU": (["--with", "torch-cuda"], 3, "no GPU"),
        "no graph there": (["--against", str(tmp_path / "absent.onnx")], 2, "there is no file"),
        "no graph in it": (["--against", str(text)], 2, "is not an ONNX model"),
        "another input": (["--against", str(fixed)], 2, "does not take images"),
        "no engine there": (["--against", str(tmp_path / "absent.engine")], 2, "there is no engine"),
        "an engine": (["--against", str(tmp_path / "foreign.engine")], 6, "no engine.json beside it"),
        "no ending": (["--against", str(tmp_path)], 2, "is no .onnx"),
    }


CASES = (
    *(
        "batch 0",
        "batch of text",
        "twice",
        "no threads",
        "no sitting",
        "no time",
        "no samples",
        "unknown runner",
        "no GPU",
    ),
    *("no graph there", "no graph in it", "another input", "no engine there", "an engine", "no ending"),
)


@pytest.mark.parametrize("case", CASES)
def test_bad_words_are_refused_and_nothing_is_written(erq: Erq, out: Path, tmp_path: Path, case: str) -> None:
    words, want, says = refusals(tmp_path)[case]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, said = erq("bench", out, *SHORT, *words)
    assert (code, said.count("fix: ")) == (want, 1), said
    assert says in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_missing_openvino_is_skipped_unasked_and_refused_asked(
    erq: Erq, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contestants.importlib.util, "find_spec", lambda _: None)
    code, said = erq("bench", out, *SHORT)
    assert code == 0, said
    assert "openvino is not installed" in said
    code, said = erq("bench", out, *SHORT, "--with", "openvino")
    assert code == 3, said
    assert "pip install 'erq-export[openvino]'" in said


def test_a_run_without_graphs_is_refused(erq: Erq, out: Path) -> None:
    shutil.rmtree(out / "onnx")
    code, said = erq("bench", out, *SHORT)
    assert (code, "holds no graph" in said) == (2, True), said


def test_a_graph_that_was_changed_is_not_timed(erq: Erq, out: Path) -> None:
    graph = out / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    code, said = erq("bench", out, *SHORT)
    assert (code, "not the file that the run wrote" in said) == (2, True), said


def test_an_interrupt_leaves_the_folder_as_it_was(erq: Erq, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(pages, "html", interrupted)  # bench.json and report.md are written by then, beside
    code, said = erq("bench", out, *SHORT)
    assert code == 130, said
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_with_bench_has_the_section_at_once(erq: Erq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BenchSpec", lambda: BenchSpec(batch=(1,), samples=10, seconds=0.05, sittings=2))
    photos = write_images(tmp_path / "photos", 6)
    code, said = erq(*MODEL, *QUICK, "--to", "onnx", "--data", photos, "--out", tmp_path / "out", "--bench")
    assert code == 0, said
    assert read(Bench, tmp_path / "out" / "bench.json").lines
    assert "## Speed" in (tmp_path / "out" / "report.md").read_text()


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners.shutil, "which", lambda _: None)
    with pytest.raises(MachineError, match=r"C\+\+ compiler"):
        runners.compiled(torch.nn.Identity(), torch.device("cpu"), name="x")


def test_python_calls_the_same(out: Path) -> None:
    found = erq_export.bench(out, batch=(2,), samples=10, seconds=0.05, threads=(1,))
    assert found == read(Bench, out / "bench.json")
    assert {line.batch for line in found.lines} == {2}
    with pytest.raises(SpecError, match="option of bench 'batchs'"):
        erq_export.bench(out, batchs=(2,))
    with pytest.raises(SpecError, match="--batch"):
        erq_export.bench(out, batch=(0,))
