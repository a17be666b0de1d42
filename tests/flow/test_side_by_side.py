"""Runs side by side: figures are those of their reports, what differs is said, and what is no run is refused by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import reports
from command_line import Erq
from html_page import Page
from msgspec import structs

import erq_export
from erq_export.contract.errors import DataError, ErqError, OutputError, SpecError
from erq_export.contract.records import encode, read
from erq_export.contract.report import Report
from erq_export.contract.side_by_side import SideBySide
from erq_export.flow.side_by_side import compare, write
from erq_export.validate.report.side_by_side import side_by_side


def save(folder: Path, report: Report, *, images: str = "e" * 64, bench: bool = False) -> Path:
    folder.mkdir()
    manifest = structs.replace(reports.run_manifest(), images={"held out": images}, placing=None)
    (folder / "manifest.json").write_bytes(encode(manifest))
    (folder / "report.json").write_bytes(encode(report))
    if bench:
        (folder / "bench.json").write_bytes(encode(reports.bench()))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A run, and one of other bits that passed and was timed."""
    report = reports.report()
    other = structs.replace(
        report,
        quantization=structs.replace(report.quantization, method="rtn"),
        problems=(),
        accuracy=structs.replace(reports.report().accuracy, float_top1=structs.replace(reports.SHARE, value=80.5)),
    )
    return save(tmp_path / "a", report), save(tmp_path / "b", other, bench=True)


def rows_of(found: SideBySide) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in side_by_side(found)[1]}


def test_a_column_a_run_with_its_own_figures(two: tuple[Path, Path]) -> None:
    found = compare(*two)
    head, _ = side_by_side(found)
    rows = rows_of(found)
    assert head == ("", *(str(path) for path in two))
    assert rows["method"] == ["erq", "rtn"]
    assert rows["verdict"] == ["FAILED", "FAILED"]  # the second one's benchmark has a problem
    assert rows["top-1 % float32"] == ["90.00 (59.6 … 98.2)", "80.50 (59.6 … 98.2)"]
    assert rows["error onnx"] == ["2.5e-01", "2.5e-01"]
    assert rows["apart from PyTorch onnx"] == ["1.0e-03 (noise 1.0e-03)"] * 2
    assert rows["calibration s"] == ["1.5", "1.5"]
    assert rows["times as fast, onnx in onnxruntime, batch 1, 2 threads"] == ["", "1.12 × (1.06 … 1.25)"]
    assert rows["times as fast, onnx in onnxruntime, batch 1, 2 threads (quartiles)"] == ["2.00 × (1.50 … 2.50)", ""]


def test_many_runs_stand_below_each_other(tmp_path: Path) -> None:
    folders = [save(tmp_path / str(i), reports.report()) for i in range(5)]
    head, body = side_by_side(compare(*folders))
    assert head[:3] == ("", "verdict", "problems")
    assert [row[0] for row in body] == [str(folder) for folder in folders]
    assert all(len(row) == len(head) for row in body)


def test_equal_surroundings_need_no_word(tmp_path: Path) -> None:
    assert compare(save(tmp_path / "a", reports.report()), save(tmp_path / "b", reports.report())).differences == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": structs.replace(reports.IDENTITY, timm_name="deit_tiny_patch16_224")}, "Not the same model as in"),
        ({"model": structs.replace(reports.IDENTITY, weights_sha256="f" * 64)}, "Not the same weights as in"),
        ({"data": structs.replace(reports.report().data, pixels_sha256="f" * 64)}, "Not the same calibration images"),
        ({"machine": {"processor": "another"}}, "Not the same processor"),
        ({"erq_export": "0.0.9"}, "Not the same version of erq-export"),
    ],
)
def test_what_is_not_the_same_is_said(tmp_path: Path, change: dict[str, object], says: str) -> None:
    report = reports.report()
    found = compare(save(tmp_path / "a", report), save(tmp_path / "b", structs.replace(report, **change)))
    (said,) = found.differences
    assert said.startswith(says)
    assert str(tmp_path / "b") in said


def test_other_held_out_images_are_said(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", reports.report()), save(tmp_path / "b", reports.report(), images="d" * 64)
    (said,) = compare(a, b).differences
    assert said.startswith("Not the same held-out images")


def test_a_benchmark_of_another_bundle_does_not_count(tmp_path: Path) -> None:
    other = structs.replace(reports.report(), bundle_sha256="f" * 64)
    found = compare(save(tmp_path / "a", reports.report()), save(tmp_path / "b", other, bench=True))
    assert list(found.runs[1].speed) == list(found.runs[0].speed)  # both the report's own


def test_the_command_prints_and_writes_what_python_returns(two: tuple[Path, Path], erq: Erq, tmp_path: Path) -> None:
    found = erq_export.compare(*two)
    for name in ("c.json", "c.md", "c.html"):
        code, said = erq("compare", *two, "--out", tmp_path / name)
        assert code == 0, said
        assert "80.50 (59.6 … 98.2)" in said
    assert read(SideBySide, tmp_path / "c.json") == found
    head, body = side_by_side(found)
    page = Page((tmp_path / "c.html").read_text())
    assert page.tables[""][0].rows == [list(head), *body]
    assert "script" not in {name for name, _ in page.tags}
    assert "| method | erq | rtn |" in (tmp_path / "c.md").read_text()


def test_a_file_is_replaced_when_asked(two: tuple[Path, Path], tmp_path: Path) -> None:
    found, path = compare(*two), tmp_path / "mine.md"
    path.write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        write(found, path)
    assert path.read_text() == "mine"
    write(found, path, overwrite=True)
    assert path.read_text().startswith("# Runs side by side")
    with pytest.raises(SpecError, match="nothing is written with that ending"):
        write(found, tmp_path / "c.pdf")
    with pytest.raises(OutputError, match="its folder is not there"):
        write(found, tmp_path / "no" / "c.md")


def test_comparing_loads_no_model_and_no_runtime(two: tuple[Path, Path]) -> None:
    code = (
        "import sys, erq_export\n"
        "erq_export.compare(*sys.argv[1:])\n"
        "print(sorted({'timm', 'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *map(str, two)], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_what_is_no_run_is_refused_by_name(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = save(tmp_path / "damaged", reports.report())
    (damaged / "report.json").write_text("{")
    older = save(tmp_path / "older", reports.report())
    (older / "report.json").write_bytes(encode(reports.report()).replace(b'"format": ', b'"format": 9', 1))
    killed = save(tmp_path / "killed", reports.report())
    (killed / "report.json").unlink()
    timed = save(tmp_path / "timed", reports.report())
    (timed / "bench.json").write_text("[]")
    refused: list[tuple[list[Path], type[ErqError], str]] = [
        ([a], SpecError, "one run has nothing beside it"),
        ([a, b, a / ".." / "a"], SpecError, "named twice"),
        ([a, tmp_path / "nowhere"], DataError, "nowhere is no folder"),
        ([a, empty], DataError, "empty holds no run"),
        ([damaged, b], DataError, "damaged/report.json is no report"),
        ([older, b], DataError, "older/report.json is a report of format 9"),
        ([a, killed], DataError, "there is no .*killed/report.json"),
        ([a, timed], DataError, "timed/bench.json is no benchmark of a run"),
    ]
    for folders, kind, says in refused:
        with pytest.raises(kind, match=says):
            compare(*folders)
