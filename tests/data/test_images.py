"""Images are found, read, labelled and preprocessed as said; what cannot be read is named."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erq_export.contract.bundle import DataFingerprint
from erq_export.contract.errors import DataError, SpecError
from erq_export.contract.preprocess import Preprocess
from erq_export.data import held_out
from erq_export.data.batches import batches
from erq_export.data.calibration_set import CalibrationSet, calibration_set
from erq_export.data.images import ImageFolder, read_class_map

CONFIG: dict[str, Any] = {
    "input_size": (3, 16, 16),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.25, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "license": "a part that preprocessing does not have",
}


def rgb(seed: int = 0, size: tuple[int, int] = (16, 16)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, nested, with files that are no images."""
    for i, name in enumerate(["dog/b.png", "dog/deep/er/a.PNG", "cat/c.png", "ant/z.bmp", "cat/d.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rgb(i).save(path)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "dog" / "folder.png").mkdir()
    return tmp_path


def preprocess(**overrides: Any) -> Preprocess:
    return Preprocess.from_config(CONFIG, overrides)


def test_folders_are_searched_to_the_bottom_in_sorted_order(folder: Path) -> None:
    found = ImageFolder(folder)
    names = [found.name(i) for i in range(len(found))]
    assert names == ["ant/z.bmp", "cat/c.png", "cat/d.png", "dog/b.png", "dog/deep/er/a.PNG"]
    assert found.labels is None
    assert np.array_equal(np.asarray(found.image(3)), np.asarray(rgb(0)))


def test_classes_are_the_first_folders_in_sorted_order(folder: Path) -> None:
    assert ImageFolder(folder, labelled=True).labels == (0, 1, 1, 2, 2)


def test_a_class_map_says_which_index_a_folder_has(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("map") / "map.txt"
    path.write_text("dog\n\nelk\ncat\nant 17\n")
    assert read_class_map(path) == {"dog": 0, "elk": 1, "cat": 2, "ant": 17}
    assert ImageFolder(folder, labelled=True, class_map=path).labels == (17, 2, 2, 0, 0)


@pytest.mark.parametrize(
    ("text", "match"),
    [("dog\ncat\n", "'ant'"), ("dog 0 0\n", "line 1"), ("ant\ndog zero\n", "line 2"), (b"\xff\xfe\xff", "cannot read")],
)
def test_a_class_map_that_does_not_fit_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, text: str | bytes, match: str
) -> None:
    path = tmp_path_factory.mktemp("map") / "map.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=match):
        ImageFolder(folder, labelled=True, class_map=path)


def test_a_missing_class_map_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        ImageFolder(folder, labelled=True, class_map=folder / "nowhere.txt")


def test_an_image_without_a_class_folder_is_named(folder: Path) -> None:
    rgb().save(folder / "stray.png")
    assert len(ImageFolder(folder)) == 6
    with pytest.raises(DataError, match=r"stray\.png lies in no class folder"):
        ImageFolder(folder, labelled=True)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        ImageFolder(tmp_path / "none")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no image below"):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        ImageFolder(tmp_path / "a.txt")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    """Modes that hold the same colours give the same pixels (P: with the image's own palette, up to 256 colours)."""
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    source = grey.convert("RGB").convert(mode) if mode != "P" else grey.convert("P")
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    source.save(path)
    image = ImageFolder(tmp_path).image(0)
    assert (image.mode, image.size) == ("RGB", (16, 16))
    if mode != "1":
        assert np.array_equal(np.asarray(image), np.asarray(grey.convert("RGB")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda _data: b"",
        lambda _data: b"this is no image",
        lambda data: data[: len(data) // 2],
        lambda data: data[:60],
        lambda data: data[:8] + bytes(len(data) - 8),
    ],
    ids=["empty", "text", "half", "header only", "zeros"],
)
@pytest.mark.parametrize("name", ["bad.png", "bad.jpg", "bad.gif", "bad.bmp", "bad.webp", "bad.tif"])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Any) -> None:
    path = tmp_path / name
    rgb(size=(64, 64)).save(path)
    assert ImageFolder(tmp_path).image(0).size == (64, 64)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=name) as caught:
        ImageFolder(tmp_path).image(0)
    assert "repair or remove" in caught.value.fix


def test_a_file_that_claims_to_be_huge_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"bomb\.png"):
        ImageFolder(tmp_path).image(0)


def test_16_bit_grey_keeps_its_greys_or_is_refused(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(grey).save(tmp_path / "deep.png")
    try:
        image = ImageFolder(tmp_path).image(0)
    except DataError:
        return
    assert np.abs(np.asarray(image)[..., 0].astype(int) - (grey >> 8)).max() <= 1


def test_preprocessing_is_scale_and_normalise_when_nothing_is_resized() -> None:
    image = rgb()
    tensor = preprocess().tensor(image)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    expected = (pixels - torch.tensor(CONFIG["mean"])[:, None, None]) / torch.tensor(CONFIG["std"])[:, None, None]
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (3, 16, 16))
    assert torch.allclose(tensor, expected, rtol=0, atol=1e-6)  # a few float32 roundings of numbers up to 4


def test_the_short_side_is_resized_and_the_centre_cropped() -> None:
    """A bright centre fills the crop when crop_pct keeps only the middle."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[16:48, 48:80] = 255
    middle = preprocess(crop_pct=0.5).tensor(Image.fromarray(pixels))
    whole = preprocess().tensor(Image.fromarray(pixels))
    white = (1 - torch.tensor(CONFIG["mean"])) / torch.tensor(CONFIG["std"])
    assert torch.allclose(middle[:, 2:-2, 2:-2], white[:, None, None].expand(3, 12, 12), atol=1e-5)
    assert middle.shape == whole.shape == (3, 16, 16)
    assert bool((whole[:, 0] < 0).all())


def test_one_channel_models_get_grey() -> None:
    one = preprocess(input_size=(1, 16, 16), mean=0.5, std=0.25)
    assert one.mean == (0.5,)
    assert tuple(one.tensor(rgb()).shape) == (1, 16, 16)


def test_every_part_can_be_replaced_and_nothing_else_enters() -> None:
    changes: dict[str, Any] = {
        "input_size": [3, 8, 8],
        "mean": [0, 0, 0],
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "border",
    }
    changed = preprocess(**changes)
    assert changed.to_json() == changes | {"std": [1.0, 1.0, 1.0]}
    assert Preprocess.from_config(changed.to_json(), {}) == changed
    assert "license" not in preprocess().to_json()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"meen": (0, 0, 0)}, "did you mean mean"),
        ({"mean": (0.5, 0.5)}, "--preprocess mean=0.5,0.5,0.5"),
        ({"std": 0.5}, "--preprocess std=0.5,0.5,0.5"),
        ({"crop_pct": 0}, "above 0, at most 1"),
        ({"crop_pct": 1.5}, "above 0, at most 1"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        preprocess(**overrides)
    assert says in caught.value.fix


@pytest.mark.parametrize(
    "overrides",
    [
        {"std": (0, 0, 0)},
        {"interpolation": "bicubik"},
        {"mean": ("a", "b", "c")},
        {"crop_pct": "abc"},
        {"crop_pct": None},
    ],
    ids=str,
)
def test_a_value_that_cannot_be_used_is_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        preprocess(**overrides).tensor(rgb())


def test_batches_keep_the_order_asked_for(folder: Path) -> None:
    source, order = ImageFolder(folder), [4, 0, 2, 1, 3]
    pieces = list(batches(source, preprocess(), order, 2))
    assert [len(p) for p in pieces] == [2, 2, 1]
    for tensor, i in zip(torch.cat(pieces), order, strict=True):
        assert torch.equal(tensor, preprocess().tensor(source.image(i)))


def drawn(folder: Path, n: int, seed: int) -> CalibrationSet:
    return calibration_set(ImageFolder(folder), preprocess(), n=n, seed=seed)


def test_the_calibration_set_is_drawn_without_replacement_and_for_good(folder: Path) -> None:
    once, again = drawn(folder, 4, 0), drawn(folder, 4, 0)
    assert once.names == again.names
    assert once.sha256 == again.sha256
    assert torch.equal(once.pixels, again.pixels)
    assert len(set(once.names)) == 4
    assert {drawn(folder, 1, seed).names[0] for seed in range(40)} == set(drawn(folder, 5, 0).names)
    assert once.fingerprint == DataFingerprint(n_images=4, names=once.names, pixels_sha256=once.sha256)


def test_the_draw_leaves_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    drawn(folder, 3, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_changed_pixel_changes_the_hash(folder: Path) -> None:
    before = drawn(folder, 5, 0)
    image = rgb(0)
    image.putpixel((3, 3), (1, 2, 3))
    image.save(folder / "dog" / "b.png")
    after = drawn(folder, 5, 0)
    assert (before.names, before.sha256 != after.sha256) == (after.names, True)


def test_too_few_images_say_how_many_there_are(folder: Path) -> None:
    assert drawn(folder, 5, 0).pixels.shape == (5, 3, 16, 16)
    with pytest.raises(DataError, match="6 images were asked for, the data folder has 5") as caught:
        drawn(folder, 6, 0)
    assert "--calib 5" in caught.value.fix


def test_pixels_that_are_not_finite_are_refused(folder: Path) -> None:
    """A std so small that float32 overflows, past what the preprocessing itself refuses."""
    tiny = dataclasses.replace(preprocess(), std=(1e-39, 1.0, 1.0))
    with pytest.raises(DataError, match="NaN or infinity"):
        calibration_set(ImageFolder(folder), tiny, n=2, seed=0)
    with pytest.raises(SpecError, match="std"):
        preprocess(std=(1e-39, 1.0, 1.0))
    with pytest.raises(SpecError, match="mean"):
        preprocess(mean=(float("nan"), 0.0, 0.0))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch: more processes than cores
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_decode_the_same_pixels_in_the_same_order(folder: Path, workers: int) -> None:
    source, order = ImageFolder(folder), [4, 0, 2, 1, 3]
    here = list(batches(source, preprocess(), order, 2))
    there = list(batches(source, preprocess(), order, 2, workers=workers))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_an_error_in_a_worker_keeps_its_type_and_its_fix(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat\.png") as caught:
        list(batches(ImageFolder(tmp_path), preprocess(), [0], 1, workers=1))
    assert caught.value.fix


@pytest.mark.parametrize("share", [range(2), range(1, 3), range(0, 3, 2), range(3)], ids=str)
def test_a_share_of_the_batches_is_those_of_the_whole(
    folder: Path, share: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "BATCH", 2)
    for remembered in (0, held_out.REMEMBERED):
        monkeypatch.setattr(held_out, "REMEMBERED", remembered)
        images = held_out.HeldOut(source=ImageFolder(folder), preprocess=preprocess())
        part, whole = list(images.pixels(share)), list(images.pixels())
        assert [len(batch) for batch in whole] == [2, 2, 1]
        assert all(torch.equal(batch, whole[i]) for i, batch in zip(share, part, strict=True))
