"""A manifest is enough to make a run again, wherever it lies; what comes out otherwise is named."""

import shutil
from pathlib import Path

import pytest
from command_line import MODEL, QUICK, Erq, write_images

from erq_export.contract.records import read
from erq_export.contract.run_manifest import RunManifest

ALL = ("weights", "images", "versions", "machine", "bundle", "onnx")


@pytest.fixture
def finished(erq: Erq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with relative paths, moved to another folder."""
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    write_images(Path("photos"), 6)
    code, said = erq(*MODEL, *QUICK, "--to", "onnx", "--data", "photos", "--out", "out")
    assert code == 0, said
    (tmp_path / "second").mkdir()
    shutil.move("out", tmp_path / "second" / "moved")
    return tmp_path / "second" / "moved"


def test_a_manifest_holds_no_path_of_the_machine_and_lists_every_file(finished: Path, tmp_path: Path) -> None:
    manifest = read(RunManifest, finished / "manifest.json")
    assert manifest.complete
    assert str(tmp_path) not in (finished / "manifest.json").read_text()
    found = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert {file.path for file in manifest.files} == found - {"manifest.json"}
    assert set(manifest.artifacts) == {"bundle", "onnx"}
    assert manifest.command[0] == MODEL[0]


def test_a_run_is_made_again_at_another_place(erq: Erq, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parent)
    shutil.move(finished.parents[1] / "first" / "photos", "elsewhere")
    code, said = erq("reproduce", finished / "manifest.json", "--data", "elsewhere", "--out", "again")
    assert code == 0, said
    for what in ALL:
        assert f"{what}: identical" in said
    assert (Path("again") / "onnx" / "model.onnx").read_bytes() == (finished / "onnx" / "model.onnx").read_bytes()


def test_another_image_is_told_with_what_it_changed(erq: Erq, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = finished.parents[1] / "first" / "photos"
    for i in range(1, 6):
        shutil.copy(photos / "0.png", photos / f"{i}.png")
    monkeypatch.chdir(photos.parent)
    code, said = erq("reproduce", finished / "manifest.json")
    assert code == 8, said
    assert "images: calibration are others than those of the run" in said
    assert "weights: identical" in said
    assert "bundle: bundle/bundle.json differs, first in line" in said
    assert "onnx: onnx/manifest.json differs" in said or "onnx: onnx/model.onnx differs, first in tensor" in said


def test_what_is_no_manifest_is_refused(erq: Erq, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1, "erq_export": "0"}')
    for path, says in ((tmp_path / "absent.json", "there is no"), (tmp_path / "manifest.json", "what was asked")):
        code, said = erq("reproduce", path)
        assert code == 2
        assert says in said
