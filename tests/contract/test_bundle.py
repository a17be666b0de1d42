"""A bundle is what was calibrated: equal inputs give equal bytes, files give it back, damage is noticed."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_vit import TINY_LAYERS, calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import nn

from erq_export.contract.bundle import DESCRIPTION, TENSORS, Bundle, BundleDescription, fingerprint
from erq_export.contract.errors import DataError
from erq_export.contract.kernel import Kernel
from erq_export.contract.quantized import QuantizedConv, QuantizedLayer
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model

FILES = (TENSORS, DESCRIPTION)
FORMAT = BundleDescription.FORMAT


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    bundle.save(tmp_path)
    return tmp_path


def saved(bundle: Bundle, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    bundle.save(folder)
    return {name: (folder / name).read_bytes() for name in FILES}


def test_a_bundle_comes_back_to_the_byte(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    loaded = Bundle.load(folder)
    assert saved(loaded, tmp_path / "again") == {name: (folder / name).read_bytes() for name in FILES}
    assert {p.name for p in (tmp_path / "again").iterdir()} == set(FILES)


def test_a_bundle_comes_back_value_for_value(bundle: Bundle, folder: Path) -> None:
    loaded = Bundle.load(folder)
    for name in ("spec", "identity", "data", "statistics", "versions"):
        assert getattr(loaded, name) == getattr(bundle, name)
    assert tuple(loaded.layers) == tuple(bundle.layers) == TINY_LAYERS
    for path, layer in bundle.layers.items():
        other = loaded.layers[path]
        for name in ("weight_q", "weight_scale", "weight_qmin", "bias", "weight"):
            assert torch.equal(getattr(other, name), getattr(layer, name))
            assert getattr(other, name).dtype == getattr(layer, name).dtype
        for name in ("scale", "qmin", "qmax"):
            assert torch.equal(getattr(other.act, name), getattr(layer.act, name))
        assert (other.w_bits, other.a_bits) == (layer.w_bits, layer.a_bits)
    assert loaded.leftovers.keys() == bundle.leftovers.keys()
    assert all(torch.equal(loaded.leftovers[k], bundle.leftovers[k]) for k in bundle.leftovers)


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    bundles = [calibrated_bundle(tiny_vit(), random_images(), tiny_spec()) for _ in range(2)]
    first, second = (saved(b, tmp_path / str(i)) for i, b in enumerate(bundles))
    assert first == second
    assert fingerprint(tmp_path / "0") == fingerprint(tmp_path / "1")


@pytest.mark.parametrize(
    "change",
    [
        lambda: (tiny_vit(seed=1), random_images(), tiny_spec()),
        lambda: (tiny_vit(), random_images(seed=1), tiny_spec()),
        lambda: (tiny_vit(), random_images(), tiny_spec(ridge=101.0)),
        lambda: (tiny_vit(), random_images(), tiny_spec(rounding="paper")),
    ],
    ids=["weights", "images", "ridge", "rounding"],
)
def test_other_inputs_give_other_integers(tmp_path: Path, change: Callable[[], Any]) -> None:
    """Else equal bytes would mean nothing."""
    first = saved(calibrated_bundle(tiny_vit(), random_images(), tiny_spec()), tmp_path / "0")
    second = saved(calibrated_bundle(*change()), tmp_path / "1")
    assert first[TENSORS] != second[TENSORS]
    assert fingerprint(tmp_path / "0") != fingerprint(tmp_path / "1")


def test_the_reference_survives_the_files(bundle: Bundle, folder: Path) -> None:
    x = random_images(seed=5).pixels
    with torch.no_grad():
        assert torch.equal(reference_model(Bundle.load(folder))(x), reference_model(bundle)(x))


def test_the_reference_is_in_evaluation_mode_and_complete(calibrated: tuple[Loaded, Bundle]) -> None:
    loaded, bundle = calibrated
    reference = reference_model(bundle)
    assert not any(m.training for m in reference.modules())
    expected, got = loaded.model.state_dict(), reference.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[k], expected[k]) for k in expected)


def test_the_tensors_are_integers_and_float32(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    kinds = {"weight_q": torch.int8, "weight_qmin": torch.int16}
    for name, tensor in tensors.items():
        assert tensor.dtype == kinds.get(name.rpartition(".")[2], torch.float32), name
    assert not [n for n in tensors if n.startswith("float.") and n.removeprefix("float.").startswith(TINY_LAYERS)]


def test_nothing_of_this_machine_is_in_it(folder: Path) -> None:
    text = (folder / DESCRIPTION).read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert str(folder) not in text
    assert "/tmp" not in text


def damage_tensors(folder: Path) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[-1] ^= 1  # one bit of the last tensor: still a valid safetensors file
    (folder / TENSORS).write_bytes(data)


def cut_tensors(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-100])


def remove_tensors(folder: Path) -> None:
    (folder / TENSORS).unlink()


def remove_description(folder: Path) -> None:
    (folder / DESCRIPTION).unlink()


def cut_description(folder: Path) -> None:
    (folder / DESCRIPTION).write_text((folder / DESCRIPTION).read_text()[:-100])


def next_format(folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(description | {"format": FORMAT + 1}))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (damage_tensors, "damaged"),
        (cut_tensors, "damaged"),
        (remove_tensors, "missing"),
        (remove_description, "there is no .*bundle.json"),
        (cut_description, "is no bundle"),
        (next_format, f"a bundle of format {FORMAT + 1}, this version reads format {FORMAT}"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_noticed(folder: Path, damage: Callable[[Path], None], match: str) -> None:
    Bundle.load(folder)
    damage(folder)
    with pytest.raises(DataError, match=match) as caught:
        Bundle.load(folder)
    assert caught.value.fix


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"null"])
def test_a_description_that_is_no_description_is_refused(folder: Path, content: bytes) -> None:
    (folder / DESCRIPTION).write_bytes(content)
    with pytest.raises(DataError, match="is no bundle"):
        Bundle.load(folder)


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("leftover", ["norm.weight", "pos_embed"])
def test_leftovers_that_do_not_fit_are_refused(bundle: Bundle, leftover: str) -> None:
    fewer = {k: t for k, t in bundle.leftovers.items() if k != leftover}
    more = bundle.leftovers | {"another.weight": torch.zeros(2)}
    for leftovers in (fewer, more):
        with pytest.raises(DataError, match="do not fit"):
            reference_model(dataclasses.replace(bundle, leftovers=leftovers))


def test_a_missing_layer_is_refused(bundle: Bundle) -> None:
    layers = {k: v for k, v in bundle.layers.items() if k != "head"}
    with pytest.raises(DataError, match="do not fit"):
        reference_model(dataclasses.replace(bundle, layers=layers))


def with_a_convolution(bundle: Bundle) -> Bundle:
    head = bundle.layers["head"]
    assert isinstance(head, QuantizedLayer)
    point = Kernel(channels=head.weight_q.shape[1], window=(1, 1))
    return dataclasses.replace(bundle, layers={**bundle.layers, "head": QuantizedConv(**vars(head), kernel=point)})


def test_a_convolution_comes_back_to_the_byte(bundle: Bundle, tmp_path: Path) -> None:
    files = saved(with_a_convolution(bundle), tmp_path / "first")
    again = Bundle.load(tmp_path / "first")
    assert isinstance(again.layers["head"], QuantizedConv)
    assert saved(again, tmp_path / "again") == files


def test_a_convolution_in_the_place_of_a_linear_is_refused(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="head is a convolution"):
        reference_model(with_a_convolution(bundle))


def test_the_reference_holds_no_float_weight_of_a_quantized_layer(bundle: Bundle) -> None:
    assert not [m for m in reference_model(bundle).modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
