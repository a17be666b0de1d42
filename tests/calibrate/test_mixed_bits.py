"""A layer with bits of its own is the layer of a run in which all have them; the others are as they were."""

from pathlib import Path

import pytest
import torch
from tiny_swin import SIZE, tiny_swin
from tiny_vit import TINY_LAYERS, calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import Tensor

from erq_export.calibrate import ranges
from erq_export.calibrate.known_ranges import KnownRanges, deciding
from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.setting import PATCH_BITS, Setting
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import ParityError
from erq_export.contract.targets import TARGETS
from erq_export.exporters.lint.check import check
from erq_export.exporters.onnx.write import lowered, marker_graph, save
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.check import check_parity

BOTH = ("onnx", "tensorrt-rtx")
METHODS = ("erq", "gptq", "repq", "rtn")
FC1, QKV, PROJ = "blocks.1.mlp.fc1", "blocks.0.attn.qkv", "blocks.0.attn.proj"


def bundle(bits: str, method: str = "erq", targets: tuple[str, ...] = BOTH, **options: object) -> Bundle:
    return calibrated_bundle(tiny_vit(), random_images(), tiny_spec(bits, targets, method=method, **options))


def same(one: Bundle, other: Bundle, path: str) -> bool:
    a, b = one.layers[path].stored(), other.layers[path].stored()
    return all(torch.equal(a[name], b[name]) for name in a) and one.layers[path].act == other.layers[path].act


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_those_of_runs_that_have_their_bits_everywhere(method: str) -> None:
    """To the bit where inputs have the same bits; other input grids fold otherwise, which moves float sums by a rounding."""
    plain, mixed = bundle("w4a4", method), bundle(f"w4a4,{FC1}=w8a4,{QKV}=w2a4", method)
    eight, two = bundle("w4a4,*=w8a4", method), bundle("w4a4,*=w2a4", method)
    for path in TINY_LAYERS:
        assert same(mixed, {FC1: eight, QKV: two}.get(path, plain), path), path
        bits, layer = mixed.spec.bits.at(path), mixed.layers[path]
        assert (layer.w_bits, layer.a_bits) == (bits.w, PATCH_BITS if path == "patch_embed.proj" else bits.a)
    assert not same(mixed, plain, FC1)


@pytest.mark.parametrize("method", METHODS)
def test_so_are_layers_with_other_input_bits(method: str) -> None:
    mixed, eight = bundle(f"w4a4,{FC1}=w8a8", method), bundle("w4a4,*=w8a8", method)
    ours, theirs = mixed.layers[FC1], eight.layers[FC1]
    assert (ours.w_bits, ours.a_bits, ours.act.codes) == (8, 8, theirs.act.codes)
    moved = (ours.weight_q.int() - theirs.weight_q.int()).abs()
    assert int(moved.max()) <= 1  # a weight on the border between two integers
    assert float((moved > 0).float().mean()) < 0.01
    assert torch.allclose(ours.weight, theirs.weight, atol=1.01 * float(ours.weight_scale.max()))


def test_a_basis_is_decided_by_the_base_so_that_layers_of_one_base_fit_each_other() -> None:
    """The rotation foretold to be worth it at 4 bits is the one of every override."""
    usual = {"rotate": "auto"}
    assert bundle("w4a4,*=w8a8", **usual).rotated == bundle("w4a4", **usual).rotated


@pytest.mark.parametrize("bits", [f"w8a7,{PROJ}=w8a8", f"w8a8,{PROJ}=w8a7", "w8a7,*.qkv=w8a8", "w8a8,head=w8a7"])
@pytest.mark.parametrize("attention", ["fp16", "int8"])
def test_the_float_function_survives_every_fold(bits: str, attention: str) -> None:
    """Values are folded by the bits of the layer that reads them: a model with fine grids is near the float one."""
    fine = bundle(bits, "repq", attention=attention)
    pixels = random_images(4, seed=3).pixels
    want = tiny_vit().model(pixels)
    got: Tensor = reference_model(fine)(pixels)
    assert float((got - want).norm() / want.norm()) < 0.1  # a fold left out, or made twice, gives about 1


@pytest.mark.parametrize("pack", ["int8", "int4"])
@pytest.mark.parametrize("target", BOTH)
def test_mixed_layers_are_legal_packed_one_by_one_and_equal_their_reference(
    pack: str, target: str, tmp_path: Path
) -> None:
    found = bundle("w4a4,head=w8a8,blocks.0.*=w8a8,blocks.1.attn.qkv=w2a4", pack=pack)
    graph, manifest = lowered(marker_graph(found), TARGETS[target], None, pack=pack)
    save(graph, tmp_path / "model.onnx")
    assert not [f for f in check(tmp_path / "model.onnx", target).findings if f.level == "error"]
    containers = {site.path: site.weight_container for site in manifest.sites}
    for path, layer in found.layers.items():
        packed = pack == "int4" and layer.w_bits <= 4 and layer.weight_q.shape[0] % 2 == 0
        assert containers[path] == ("int4" if packed else "int8"), path
    assert ("int4" in containers.values()) == (pack == "int4")
    if target == "onnx":
        pixels = random_images(4).pixels
        report = check_parity(
            reference_model(found), tmp_path / "model.onnx", manifest, found.layers, pixels, progress=lambda *_: None
        )
        assert report.problems() == [], ParityError


def test_ranges_are_taken_over_where_no_input_has_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, weights, inputs = (Setting.of(tiny_spec(bits)) for bits in ("w4a4", "w4a4,head=w2a4", "w4a4,head=w4a8"))
    assert deciding(plain) == deciding(weights) != deciding(inputs)
    assert deciding(plain)["a"] == 4  # as it was before there were overrides
    known = KnownRanges()

    def run(bits: str) -> Bundle:
        asked = tiny_spec(bits)
        return calibrate(
            tiny_vit(), random_images(), asked, device=torch.device("cpu"), progress=lambda *_: None, known=known
        )

    run("w4a4")
    want = bundle("w4a4,head=w2a4", targets=("onnx",))
    monkeypatch.setattr(ranges, "searched", lambda *_, **__: pytest.fail("ranges were searched"))
    assert all(same(run("w4a4,head=w2a4"), want, path) for path in TINY_LAYERS)


def test_a_swin_has_mixed_bits_too() -> None:
    asked = tiny_spec("w4a4,layers.1.*=w8a8")
    found = calibrated_bundle(tiny_swin(), random_images(size=SIZE), asked)
    assert {layer.w_bits for path, layer in found.layers.items() if path.startswith("layers.1.")} == {8}
    assert {layer.w_bits for path, layer in found.layers.items() if not path.startswith("layers.1.")} == {4}
