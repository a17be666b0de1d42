"""A run is shown from its records; a damaged one is refused with the file's name, and no report breaks what shows it."""

import sys
from pathlib import Path

import pytest
import reports
from command_line import Erq
from damage import every_damage
from html_page import Page

from erq_export.contract.errors import DataError
from erq_export.contract.records import decode, encode
from erq_export.contract.report import Report
from erq_export.flow.terminal import Terminal
from erq_export.validate.report.html import html
from erq_export.validate.report.markdown import markdown

FILES = ("report.json", "onnx/manifest.json", "onnx/engine/engine.json")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with the records of a run, and nothing else."""
    for name, record in zip(FILES, (reports.report(), reports.manifest(), reports.engine()), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(record))
    return tmp_path


def test_a_run_is_shown(out: Path, erq: Erq) -> None:
    code, said = erq("inspect", out)
    assert code == 0, said
    for text in ("- A second sentence.", "Top-1 on 10 held-out images", "0.25 ± 0.12 (0.12 … 0.38)", "engine.json"):
        assert text in said


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"format": ', b'"format": 9', "of format 9"),
        (b"{", b"", "is no "),
        (b'": {', b'": [{}], "surplus": {', "at $"),
    ],
)
def test_a_damaged_record_is_refused_by_name(out: Path, erq: Erq, name: str, old: bytes, new: bytes, says: str) -> None:
    data = (out / name).read_bytes()
    (out / name).write_bytes(data.replace(old, new, 1))
    code, said = erq("inspect", out)
    assert (code, said.count("fix: ")) == (2, 1), said
    assert f"error: {out / name}" in said
    assert says in said


@pytest.mark.parametrize("name", FILES)
def test_a_missing_record_is_named(out: Path, erq: Erq, name: str) -> None:
    (out / name).unlink()
    code, said = erq("inspect", out)
    assert (code, f"there is no {out / name}" in said) == (2, True), said


def test_whatever_passes_as_a_report_can_be_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd values that keep every rule, brackets that look like the terminal's markup among them."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # drawing takes longer than reading
    shown, terminal = 0, Terminal()
    for damaged in every_damage(encode(reports.report()), seed=1):
        try:
            report = decode(Report, damaged.data, source="report.json")
        except DataError:
            continue
        shown += 1
        assert markdown(report)
        assert Page(html(report)).first_line
        if shown % 5 == 0:  # drawing takes longer than reading
            terminal.show(report, tmp_path)
            capsys.readouterr()
    assert shown > 300
