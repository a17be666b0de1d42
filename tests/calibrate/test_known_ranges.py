"""Input grids are taken over from a calibration with other weight bits or another method, to the same bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vit import random_images, tiny_spec, tiny_vit

from erq_export.calibrate import ranges
from erq_export.calibrate.known_ranges import KnownRanges, deciding
from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.setting import Setting
from erq_export.contract.bundle import Bundle
from erq_export.contract.spec import Quantization

CPU = torch.device("cpu")
BOTH = ("onnx", "tensorrt-rtx")


def saved(bundle: Bundle, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    bundle.save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def run(asked: Quantization, known: KnownRanges | None = None) -> Bundle:
    return calibrate(tiny_vit(), random_images(), asked, device=CPU, progress=lambda *_: None, known=known)


@pytest.mark.parametrize("input_ranges", ["float", "quantized"])
@pytest.mark.parametrize(
    ("first", "then"), [("w4a4 erq", "w2a4 erq"), ("w3a4 gptq", "w4a4 erq"), ("w8a8 rtn", "w2a8 rtn")]
)
def test_a_second_calibration_searches_nothing_and_gives_the_same_bytes(
    first: str, then: str, input_ranges: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [
        tiny_spec(bits, BOTH, method=method, input_ranges=input_ranges)
        for bits, method in map(str.split, (first, then))
    ]
    assert deciding(Setting.of(specs[0])) == deciding(Setting.of(specs[1]))
    known = KnownRanges()
    run(specs[0], known)
    known.save(tmp_path / "ranges")
    want = saved(run(specs[1]), tmp_path / "want")
    monkeypatch.setattr(ranges, "searched", lambda *_, **__: pytest.fail("ranges were searched"))
    assert saved(run(specs[1], KnownRanges.load(tmp_path / "ranges", CPU)), tmp_path / "got") == want


@pytest.mark.parametrize(
    "change",
    [
        {"bits": "w4a8"},
        {"method": "rtn"},
        {"targets": ("onnx",)},
        {"input_ranges": "quantized"},
        {"fold_reduction": False},
    ],
    ids=str,
)
def test_what_decides_the_grids_keeps_them_apart(change: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"bits": "w4a4", "targets": BOTH, "method": "erq"}
    assert deciding(Setting.of(tiny_spec(**usual | change))) != deciding(Setting.of(tiny_spec(**usual)))


@pytest.mark.parametrize(
    "change", [{"bits": "w2a4"}, {"ridge": 7.0}, {"rounding": "paper"}, {"pack": "int4"}, {"method": "repq"}], ids=str
)
def test_what_does_not_lets_them_be_shared(change: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"bits": "w4a4", "targets": BOTH, "method": "erq"}
    assert deciding(Setting.of(tiny_spec(**usual | change))) == deciding(Setting.of(tiny_spec(**usual)))


def test_grids_of_another_basis_are_searched_again(tmp_path: Path) -> None:
    plain, turned = (tiny_spec("w4a4", BOTH, rotate=rotate) for rotate in ("none", "all"))
    assert deciding(Setting.of(plain)) == deciding(Setting.of(turned))  # what is foretold decides, not the word
    known = KnownRanges()
    run(plain, known)
    known.save(tmp_path / "ranges")
    want = saved(run(turned), tmp_path / "want")
    assert saved(run(turned, KnownRanges.load(tmp_path / "ranges", CPU)), tmp_path / "got") == want
