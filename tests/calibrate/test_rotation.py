"""Rotated streams and values: the function stays, to rounding, for every kind of model whose streams are known."""

import copy
from pathlib import Path

import pytest
import torch
from tiny_swin import tiny_swin
from tiny_vit import calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import nn

from erq_export.calibrate.bases import Spread
from erq_export.calibrate.rotation import rotate, rotated, rotation, streams_of, values_of
from erq_export.contract.bundle import Bundle
from erq_export.contract.targets import named
from erq_export.exporters.onnx.write import lowered, marker_graph
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model

MODELS = {
    "vit": tiny_vit,
    "a class token and registers": lambda: tiny_vit(reg_tokens=2, no_embed_class=True),
    "mean of all tokens": lambda: tiny_vit(global_pool="avg"),
    "LayerScale": lambda: tiny_vit(init_values=0.3),
    "no head": lambda: tiny_vit(num_classes=0, init_values=0.3),
    "no biases": lambda: tiny_vit(qkv_bias=False),
    "swin": tiny_swin,
    "swin without a head": lambda: tiny_swin(num_classes=0),
}


@torch.no_grad()
def changes(loaded: Loaded, names: tuple[str, ...]) -> float:
    """‖rotated − float‖/‖float‖ of the output, on noise."""
    pixels = torch.randn(3, *loaded.identity.preprocess.input_size, generator=torch.Generator().manual_seed(0))
    before = loaded.model(pixels)
    return float((rotated(loaded, names)(pixels) - before).norm() / before.norm())


@pytest.mark.parametrize("n", [2, 3, 32, 96, 384])
def test_the_rotation_is_orthogonal_and_keeps_the_ones(n: int) -> None:
    Q, eye = rotation(n), torch.eye(n, dtype=torch.float64)
    assert float((Q @ Q.T - eye).abs().max()) < 1e-12
    assert float((Q.sum(1) - 1).abs().max()) < 1e-12
    if n >= 96:
        assert float(Q.abs().max()) < 6 / n**0.5  # no channel of the old basis is one of the new


@pytest.mark.parametrize("model", MODELS)
def test_the_function_stays(model: str) -> None:
    loaded = MODELS[model]()
    streams, values = streams_of(loaded), values_of(loaded)
    assert streams
    assert values
    for names in (tuple(streams), tuple(values), (*streams, *values)):
        assert changes(loaded, names) < 1e-5


def test_each_linear_of_the_stream_is_changed_and_every_layernorm_that_reads_it_is_plain() -> None:
    loaded = tiny_vit(init_values=0.3)
    (stream,) = streams_of(loaded).values()
    turned = rotated(loaded, tuple(streams_of(loaded)))
    for path in (*stream.added, *(linear for linears in stream.read.values() for linear in linears)):
        assert not torch.equal(turned.get_submodule(path).weight, loaded.model.get_submodule(path).weight)  # type: ignore[arg-type]
    for path in stream.read:
        norm = turned.get_submodule(path)
        assert torch.equal(norm.weight, torch.ones(32))  # type: ignore[arg-type]
        assert torch.equal(norm.bias, torch.zeros(32))  # type: ignore[arg-type]
    for scale in stream.added.values():
        assert scale is None or torch.equal(turned.get_submodule(scale).gamma, torch.ones(32))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["pre_norm", "final_norm", "maximum"])
def test_a_stream_that_cannot_be_rotated_is_none(what: str) -> None:
    """Written to by a LayerNorm, read without one, or pooled by maxima: channels there are what they are."""
    arguments = {"pre_norm": {"pre_norm": True}, "final_norm": {"final_norm": False}, "maximum": {"global_pool": "max"}}
    loaded = tiny_vit(**arguments[what])
    assert streams_of(loaded) == {}
    assert changes(loaded, tuple(values_of(loaded))) < 1e-5


def test_a_swin_layer_whose_blocks_pad_has_no_stream() -> None:
    loaded = tiny_swin(img_size=48, window_size=5)  # 24 × 24 and 12 × 12 tokens
    assert streams_of(loaded) == {}


def spread(x: torch.Tensor) -> Spread:
    found = Spread()
    for chunk in x.split(7):
        found.add(chunk)
    return found


def test_an_error_is_foretold_to_a_fifth_by_rounding_uniform_inputs_and_weights() -> None:
    g = torch.Generator().manual_seed(0)
    size = torch.linspace(0.5, 2, 16, dtype=torch.float64)
    x = (torch.rand(4000, 16, generator=g, dtype=torch.float64) - 0.5) * size
    W = torch.rand(64, 16, generator=g, dtype=torch.float64) - 0.5
    s = (x.amax(0) - x.amin(0)) / 15
    x_hat = (x / s).round() * s
    r = s / s.mean()
    t = ((W * r).amax(1) - (W * r).amin(1))[:, None] / 7
    W_hat = ((W * r) / t).round() * t / r
    wanted = float(((x_hat @ W.T - x @ W.T).square().sum() + ((x @ (W_hat - W).T).square().sum())) / len(x))
    assert spread(x).foretold(W, a=4, w=3, folded=True) == pytest.approx(wanted, rel=0.2)


def outlying(loaded: Loaded) -> Loaded:
    """A few channels of every LayerNorm twenty times as large, the Linears behind it as much smaller: the same function."""
    with torch.no_grad():
        for norm, linears in next(iter(streams_of(loaded).values())).read.items():
            for parameter in loaded.model.get_submodule(norm).parameters():
                parameter[:3] *= 20
            for linear in linears:
                loaded.model.get_submodule(linear).weight[:, :3] *= 0.5  # type: ignore[index,operator]
    return loaded


def test_auto_rotates_where_channels_stand_out_and_not_where_all_are_alike() -> None:
    images, spec = random_images(), tiny_spec("w4a4", rotate="auto")
    plain = tiny_vit()
    for module in plain.model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1)
            module.bias.zero_()
    assert "patch_embed.proj" in calibrated_bundle(outlying(tiny_vit()), images, spec).rotated
    assert "patch_embed.proj" not in calibrated_bundle(plain, images, spec).rotated


@pytest.mark.parametrize("model", ["vit", "no head", "swin"])
def test_a_rotated_bundle_is_read_back_and_computes_the_same(model: str, tmp_path: Path) -> None:
    loaded = MODELS[model]()
    images = random_images(size=loaded.identity.preprocess.input_size[-1])
    exact = copy.deepcopy(loaded.model)
    bundle = calibrated_bundle(loaded, images, tiny_spec("w8a8", rotate="all", ridge="auto"))
    assert bundle.rotated == (*streams_of(MODELS[model]()), *values_of(MODELS[model]()))
    bundle.save(tmp_path)
    again = Bundle.load(tmp_path)
    assert again.rotated == bundle.rotated
    with torch.no_grad():
        wanted, found = exact(images.pixels), reference_model(again)(images.pixels)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05  # 8 bits: in another basis nothing would agree


def test_rotate_none_is_the_model_as_it_is() -> None:
    loaded = tiny_vit()
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    rotate(loaded, ())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())
    assert calibrated_bundle(loaded, random_images(), tiny_spec("w4a4", rotate="none")).rotated == ()


@pytest.mark.parametrize("target", ["onnx", "tensorrt-rtx"])
def test_a_graph_claims_the_product_that_turns_the_output_back_and_none_where_a_head_does(target: str) -> None:
    spec = tiny_spec("w4a4", (target,), rotate="all")
    claims = {}
    for model in ("vit", "no head"):
        bundle = calibrated_bundle(MODELS[model](), random_images(), spec).deployed()
        claims[model] = lowered(marker_graph(bundle), named(target), None)[1].claims.gemm
    assert claims == {"vit": {"int8": 10}, "no head": {"int8": 9, named(target).carrier: 1}}
