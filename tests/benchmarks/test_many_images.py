"""The benchmark of many images, cut down: every runner decides on all of them, and its memory is noted ten times."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_every_runner_is_watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    where = ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    monkeypatch.setattr(sys, "argv", ["many_images.py", "--images", "320", *where])
    importlib.import_module("many_images").main()
    found = json.loads((tmp_path / "out" / "many_images.json").read_text())
    assert list(found["runners"]) == ["float", "reference", "onnxruntime"]
    for row in found["runners"].values():
        assert [n for n, _ in row["points"]] == list(range(32, 321, 32))
        assert all(mib > 100 for _, mib in row["points"])
        assert row["top1"] > 95
    assert "320 held-out images" in (tmp_path / "out" / "many_images.md").read_text()
