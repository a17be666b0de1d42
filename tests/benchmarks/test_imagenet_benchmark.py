"""The ImageNet benchmark, carried through on a stand-in: made images, a folder of few classes, random weights."""

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from erq_export.contract.spec import ModelSpec
from erq_export.flow.store.store import Store
from erq_export.models.aliases import ALIASES
from erq_export.models.loading import load

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODEL = "deit_t"
Start = Callable[..., tuple[int, str]]


@pytest.fixture
def imagenet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("imagenet")


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """train/: 3 images; val/: 4 in three class folders."""
    rng = np.random.default_rng(0)
    for name in ("train/0", "train/1", "train/2", "val/n0/0", "val/n1/0", "val/n1/1", "val/n2/0"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((256, 240)).save(path)
    return tmp_path


@pytest.fixture
def start(imagenet: ModuleType, stand_in: Path, capsys: pytest.CaptureFixture[str]) -> Start:
    """Runs the command on the stand-in; returns its exit code and everything it printed."""

    def call(*words: str) -> tuple[int, str]:
        folders = ("--train", stand_in / "train", "--val", stand_in / "val", "--out", stand_in / "out")
        tiny = ("--models", MODEL, "--methods", "rtn", "--bits", "w4a4", "--calib", "2", "--no-pretrained")
        given = [str(w) for w in (*folders, "--store", stand_in / "store", *tiny, *words)]
        try:
            imagenet.sheet.start(partial(imagenet.main, given))
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def class_map(folder: Path, n0: int, n1: int, n2: int) -> Path:
    path = folder / "classes.txt"
    path.write_text(f"n0 {n0}\nn1 {n1}\nn2 {n2}\n", encoding="utf-8")
    return path


def results(folder: Path) -> dict[str, list[float]]:
    """Top-1 of the float model, and of every calibration seed by method."""
    found = json.loads((folder / "out" / "imagenet.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in found["floats"]] == [MODEL]
    return {"float": [found["floats"][0]["top1"]]} | {row["method"]: row["top1"]["all"] for row in found["results"]}


def made(folder: Path) -> list[str]:
    """Kinds of what the store was made to hold, in order."""
    with Store.at(folder / "store") as store:
        return [event.kind for event in store.events() if event.event == "made"]


def predicted(folder: Path) -> dict[str, int]:
    """The float model's class of every image, by an evaluation of our own: resize 256, centre crop 224, normalise."""
    model = load(ModelSpec(name=MODEL, pretrained=False), seed=0).model
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    found = {}
    for path in sorted((folder / "val").rglob("*.png")):
        image = Image.open(path)  # 256 × 240
        w, h = image.width * 256 // image.height, 256  # DeiT: 224 / 0.875
        image = image.resize((w, h), Image.Resampling.BICUBIC)
        left, top = round((w - 224) / 2), round((h - 224) / 2)
        x = (np.asarray(image.crop((left, top, left + 224, top + 224))) / 255 - mean) / std
        with torch.no_grad():
            found[path.relative_to(folder / "val").as_posix()] = int(
                model(torch.tensor(x, dtype=torch.float32).permute(2, 0, 1)[None]).argmax()
            )
    return found


def test_the_chain_runs_and_a_second_start_makes_nothing_again(start: Start, stand_in: Path) -> None:
    says = predicted(stand_in)
    n1 = says["n1/0.png"]
    classes = class_map(stand_in, says["n0/0.png"], n1, (says["n2/0.png"] + 1) % 1000)
    right = 2 + (says["n1/1.png"] == n1)  # n0, n1/0 and perhaps n1/1; never n2
    code, said = start("--class-map", str(classes), "--seeds", "2")
    assert code == 0, said
    first = results(stand_in)
    assert {method: len(values) for method, values in first.items()} == {"float": 1, "rtn": 2}
    assert first["float"] == [100 * right / 4]
    assert "random weights" in said
    page = (stand_in / "out" / "imagenet.md").read_text(encoding="utf-8")
    assert "| ERQ, TPAMI | 61.79 |" in page
    assert "| full precision, published | 72.21 |" in page
    assert f"| **float, here** | {100 * right / 4:.2f} |" in page

    before = made(stand_in)
    assert sorted(set(before)) == ["bundle", "decisions", "ranges"]
    assert (before.count("bundle"), before.count("decisions")) == (2, 3)
    code, said = start("--class-map", str(classes), "--seeds", "2")
    assert code == 0
    assert made(stand_in) == before
    assert results(stand_in) == first

    class_map(stand_in, (says["n0/0.png"] + 1) % 1000, n1, (says["n2/0.png"] + 1) % 1000)  # other labels, other result
    code, said = start("--class-map", str(classes))
    assert code == 0
    assert results(stand_in)["float"] == [100 * (right - 1) / 4]
    assert made(stand_in) == before  # the decisions are what they were


def test_three_class_folders_are_not_taken_for_the_first_three_of_a_thousand(start: Start, stand_in: Path) -> None:
    code, said = start()
    assert code == 2
    assert "3 class folders, the model has 1000 classes" in said
    assert "--class-map" in said
    assert not (stand_in / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "erc"], "did you mean erq"),
        (["--models", "vit_t"], "unknown model 'vit_t'"),
        (["--bits", "w4"], "not of the form"),
        (["--calib", "99"], "the data folder has 3"),
        (["--seeds", "0"], "at least 1"),
        (["--val", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    start: Start, stand_in: Path, words: list[str], message: str
) -> None:
    code, said = start("--class-map", str(class_map(stand_in, 0, 1, 2)), *words)
    assert code == 2
    assert message in said
    assert not (stand_in / "out").exists()


def test_weights_of_ones_own_must_be_there(imagenet: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "deit_s.pth").touch()
    assert imagenet.checkpoint_of("deit_s", tmp_path) == str(tmp_path / "deit_s.pth")
    with pytest.raises(imagenet.DataError, match="no weights of deit_t"):
        imagenet.checkpoint_of("deit_t", tmp_path)


@pytest.mark.parametrize(
    ("top1", "loud"), [(72.21, False), (72.50, False), (71.92, False), (72.52, True), (71.90, True)]
)
def test_a_float_model_that_is_not_the_papers_is_said(imagenet: ModuleType, top1: float, loud: bool) -> None:
    row = {"model": MODEL, "top1": top1, "weights": "checkpoint", "n_images": 50000}
    assert ("72.21" in imagenet.deviation(row)) == loud


def test_the_published_rows_name_the_models_that_exist(imagenet: ModuleType) -> None:
    assert tuple(m for m in ALIASES if ALIASES[m].in_paper) == imagenet.MODELS
