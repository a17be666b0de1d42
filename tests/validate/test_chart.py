"""The report's picture is drawn where matplotlib is, and missed by nobody where it is not."""

import sys
from pathlib import Path
from typing import Any

import pytest

from erq_export.validate.report.chart import draw

LAYER = {"error_inputs": 0.0, "error_nearest": 1e-2, "error": 1e-3}
REPORT: dict[str, Any] = {
    "model": {"name": "demo"},
    "quant": {"bits": "w4a4", "method": "erq"},
    "layers": [{"path": f"blocks.{i}.attn.qkv", **LAYER} for i in range(3)],
}


def test_the_picture_names_every_layer(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw(REPORT, tmp_path / "report.svg")
    text = (tmp_path / "report.svg").read_text()
    for name in ("blocks.0.attn.qkv", "blocks.2.attn.qkv", "demo w4a4 erq", "as solved"):
        assert f"<!-- {name} -->" in text


def test_without_matplotlib_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw(REPORT, tmp_path / "report.svg")
    assert list(tmp_path.iterdir()) == []
