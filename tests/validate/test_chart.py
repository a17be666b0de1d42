"""The report's picture is drawn where matplotlib is, and missed by nobody where it is not."""

import sys
from pathlib import Path

import pytest
import reports
from msgspec import structs

from erq_export.validate.report.chart import draw

REPORT = structs.replace(
    reports.report(),
    layers=tuple(structs.replace(reports.report().layers[0], path=f"blocks.{i}.mlp.fc1") for i in range(3)),
)


def test_the_picture_names_every_layer(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw(REPORT, tmp_path / "report.svg")
    text = (tmp_path / "report.svg").read_text()
    for name in ("blocks.0.mlp.fc1", "blocks.2.mlp.fc1", "demo w4a4 erq", "as solved"):
        assert f"<!-- {name} -->" in text


def test_without_matplotlib_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw(REPORT, tmp_path / "report.svg")
    assert list(tmp_path.iterdir()) == []
