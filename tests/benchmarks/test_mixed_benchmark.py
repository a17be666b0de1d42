"""The benchmark of bits by layer, cut down to one seed: chosen bits beat uniform ones, and advice that is followed gives back."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_one_seed_of_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    cut = ["--seeds", "1", "--budgets", "3", "--bits", "w2a4", "--images", "200"]
    where = ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    monkeypatch.setattr(sys, "argv", ["mixed.py", *cut, *where])
    importlib.import_module("mixed").main()
    found = json.loads((tmp_path / "out" / "mixed.json").read_text())
    (budget,), (advice,) = found["budgets"], found["advice"]
    assert budget["auto_mean_bits"]["mean"] <= 3.0 == budget["uniform_mean_bits"]["mean"]
    assert budget["auto_logits_error"]["mean"] < budget["uniform_logits_error"]["mean"]
    assert (budget["better"], budget["bits"][0].split(",")[0]) == (1, "w3a8")
    assert advice["promised"]["mean"] > 0.05  # the layer that gives back most, of 26
    # the same images, the same integers: what differs is a code that lies on a border
    assert abs(advice["regained"]["mean"] - advice["promised"]["mean"]) < 0.02
    page = (tmp_path / "out" / "mixed.md").read_text()
    assert f"| w2a4 | {advice['layers'][0]} |" in page
