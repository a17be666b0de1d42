"""A model without a head, from one command to its report: features are measured, no class is named, no label is believed."""

from pathlib import Path

import pytest
from command_line import QUICK, Erq, write_images
from tiny_vit import TINY

from erq_export.contract.records import read
from erq_export.contract.report import Report

SMALL = {
    "img_size": 28,
    "patch_size": 14,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "init_values": 0.5,
    "num_classes": 0,
}
DINO = [TINY, *(word for name, value in SMALL.items() for word in ("--model-arg", f"{name}={value}"))]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), 6)


@pytest.mark.parametrize("folders", [False, True], ids=["images in the folder", "images in class folders"])
def test_features_are_measured(erq: Erq, photos: Path, tmp_path: Path, folders: bool) -> None:
    val = write_images(tmp_path / "val" / "a" if folders else tmp_path / "val", 5)
    val = val.parent if folders else val
    out = tmp_path / "out"
    code, said = erq(*DINO, *QUICK, "--data", photos, "--val", val, "--max-logit-error", "10", "--out", out)
    assert code == 0, said
    report = read(Report, out / "report.json")
    found = report.accuracy
    assert found is not None
    assert (found.outputs, found.n_images, found.n_compared) == ("features", 5, 5)
    assert (found.float_top1, found.reference.top1, found.reference.agreement) == (None, None, None)
    assert 0 < found.reference.error < 1
    assert found.graphs["onnx"].error == pytest.approx(found.reference.error, rel=0.2)
    page = (out / "report.md").read_text()
    assert "features of 5 held-out images are" in page
    assert "| reference |  |  |  |  | " in page  # no top-1, no top-5, no class, none lost
    assert "same class" not in page
    parity = report.targets["onnx"].parity
    assert parity is not None
    assert parity.model.top1_agreement is None


def test_images_in_the_folder_itself_have_no_labels_and_still_say_something(
    erq: Erq, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    model = [word.replace("num_classes=0", "num_classes=7") for word in DINO]
    val = write_images(tmp_path / "val", 5)
    code, said = erq(*model, *QUICK, "--data", photos, "--val", val, "--min-agreement", "0", "--out", out)
    assert code == 0, said
    found = read(Report, out / "report.json").accuracy
    assert found is not None
    assert found.reference.agreement is not None
    assert found.float_top1 is None
    assert "On 5 held-out images without labels" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "n_classes", "says"),
    [
        (("--max-drop", "1"), 0, "--max-drop: the model has no head"),
        (("--min-agreement", "50"), 0, "--min-agreement: the model has no head"),
        (("--seeds", "2"), 0, "--seeds: the model has no head"),
        (("--max-drop", "1"), 7, "--max-drop: the images have no labels"),
        (("--compare", "w3a4"), 7, "--compare: the images have no labels"),
    ],
)
def test_a_bound_that_nothing_can_be_measured_for_is_refused_before_the_work(
    erq: Erq, photos: Path, tmp_path: Path, words: tuple[str, ...], n_classes: int, says: str
) -> None:
    model = [word.replace("num_classes=0", f"num_classes={n_classes}") for word in DINO]
    val = write_images(tmp_path / "val", 2)
    code, said = erq(*model, *QUICK, "--data", photos, "--val", val, *words, "--out", tmp_path / "out")
    assert code == 2
    assert says in " ".join(said.split())
    assert "calibrate:" not in said


@pytest.mark.parametrize("gate", ["--max-drop", "--min-agreement", "--max-logit-error"])
def test_a_bound_without_any_image_is_refused(erq: Erq, photos: Path, tmp_path: Path, gate: str) -> None:
    code, said = erq(*DINO, *QUICK, "--data", photos, gate, "1", "--out", tmp_path / "out")
    assert code == 2
    assert f"{gate} without --val" in " ".join(said.split())


def test_a_broken_bound_ends_in_exit_4_behind_the_report(erq: Erq, photos: Path, tmp_path: Path) -> None:
    val, out = write_images(tmp_path / "val", 3), tmp_path / "out"
    code, said = erq(*DINO, *QUICK, "--data", photos, "--val", val, "--max-logit-error", "1e-6", "--out", out)
    assert code == 4
    assert "--max-logit-error allows 1e-06" in " ".join(said.split())
    assert (out / "report.md").is_file()
