"""A calibration that was stopped goes on behind the last finished stage, to the same bytes, and does nothing twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_swin import SIZE, tiny_swin
from tiny_vit import random_images, tiny_spec, tiny_vit

from erq_export.calibrate import loop
from erq_export.calibrate.loop import calibrate
from erq_export.contract.bundle import Bundle
from erq_export.contract.spec import Quantization
from erq_export.data.calibration_set import CalibrationSet
from erq_export.models.loading import Loaded

Case = tuple[Callable[[], Loaded], Quantization, CalibrationSet]
BOTH = {"inputs": "quantized", "input_ranges": "quantized"}
ALONE = {"zero_points": "mean", "dual": True, "patch_input": "float", "row_steps": 0}
CASES: dict[str, Case] = {
    "plain": (tiny_vit, tiny_spec("w3a4", ("onnx", "tensorrt-rtx")), random_images()),
    "all states": (tiny_vit, tiny_spec("w3a4", **BOTH), random_images()),
    "int8 attention": (tiny_vit, tiny_spec("w4a4", attention="int8"), random_images()),
    "not folded": (tiny_vit, tiny_spec("w4a4", method="rtn"), random_images()),
    "published": (tiny_vit, tiny_spec("w4a4", ("reference",), **ALONE), random_images()),
    "swin": (tiny_swin, tiny_spec("w4a4", method="gptq"), random_images(size=SIZE)),
}


class Kept:
    """Checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, []  # type: ignore[var-annotated]

    def save(self, name: str, write: Callable[[Path], None]) -> bool:
        write(self.folder / name)
        self.saved.append(name)
        return True

    def read(self, name: str) -> Path | None:
        return self.folder / name if (self.folder / name).exists() else None


class Killed(Exception):
    pass


def run(case: Case, kept: Kept | None, kill_at: int | None = None) -> Bundle:
    make, asked, data = case

    def progress(_what: str, done: int, _total: int) -> None:
        if done == kill_at:
            raise Killed

    return calibrate(make(), data, asked, device=torch.device("cpu"), progress=progress, checkpoints=kept)


def saved(bundle: Bundle, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    bundle.save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_to_the_same_bytes_from_every_stage(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = saved(run(CASES[name], None), tmp_path / "whole")
    n_stages, solved = len(CASES[name][0]().stages), []
    once = loop.calibrate_stage

    def counted(model: Any, stage: Any, *rest: Any) -> Any:
        solved.append(stage.name)
        return once(model, stage, *rest)

    monkeypatch.setattr(loop, "calibrate_stage", counted)
    (tmp_path / "kept").mkdir()
    kept = Kept(tmp_path / "kept")
    for stop in (1, n_stages // 2, n_stages):  # killed in front of a stage, each time a little further on
        with pytest.raises(Killed):
            run(CASES[name], kept, kill_at=stop)
    resumed = saved(run(CASES[name], kept), tmp_path / "resumed")
    assert resumed == whole
    assert len(solved) == len(set(solved)) == n_stages
    assert len(kept.saved) == n_stages


def test_a_checkpoint_that_is_gone_ends_what_can_be_resumed(tmp_path: Path) -> None:
    """Stages behind a missing one are calibrated again: their checkpoints are not read past the hole."""
    kept = Kept(tmp_path)
    want = run(CASES["plain"], kept)
    (tmp_path / "stage.0001").unlink()
    again = Kept(tmp_path)
    got = run(CASES["plain"], again)
    assert again.saved == ["stage.0001", "stage.0002", "stage.0003"]
    for path, layer in want.layers.items():
        assert torch.equal(got.layers[path].weight_q, layer.weight_q)
