"""Models are found by name, read from files or refused by name, and preparing one does not change what it computes."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from tiny_vit import TINY, TINY_ARGS, TINY_LAYERS, random_images, tiny_vit
from torch import Tensor, nn

from erq_export.contract.errors import DataError, MachineError, SpecError
from erq_export.contract.sites import submodule
from erq_export.contract.spec import ModelSpec
from erq_export.models.family import PatchTokens, family_of, run
from erq_export.models.loading import Loaded, load
from erq_export.models.names import alias_of, architecture
from erq_export.models.vit import FAMILY

EPS = 2.0**-24


def load_tiny(**fields: Any) -> Loaded:
    defaults: dict[str, Any] = {"name": TINY, "pretrained": False, "model_args": TINY_ARGS}
    return load(ModelSpec(**defaults | fields), seed=0)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("deit-s", "deit_s"),
        ("vit_tinny_patch16_224", "vit_tiny_patch16_224"),
        ("deit_small_patch16_225", "deit_small_patch16_224"),
        ("vit_small_patch16_224.augreg_in21k_ft_in1", "vit_small_patch16_224.augreg_in21k_ft_in1k"),
    ],
)
def test_a_wrong_name_meets_its_neighbours(name: str, near: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_tiny(name=name)
    assert name in caught.value.problem or name.partition(".")[0] in caught.value.problem
    assert near in caught.value.fix


def test_the_papers_names_lead_to_the_papers_weights() -> None:
    """docs/method.md, "Data and checkpoints": timm's bare names resolve to other tags since 0.9."""
    assert alias_of("vit_s").timm_name == "vit_small_patch16_224.augreg_in21k_ft_in1k"
    assert alias_of("deit_t").timm_name == "deit_tiny_patch16_224.fb_in1k"
    assert alias_of("deit_s").preprocess == {"crop_pct": 0.875}
    assert alias_of("vit_small_patch16_224").timm_name == "vit_small_patch16_224"


VARIANTS: list[dict[str, Any]] = [
    {},
    {"qkv_bias": False},
    {"class_token": False, "global_pool": "avg"},
    {"reg_tokens": 3, "no_embed_class": True},
    {"pre_norm": True, "init_values": 0.5},
    {"qk_norm": True},
    {"img_size": (8, 16), "patch_size": 2},
    {"in_chans": 1},
    {"num_classes": 0},
]
GREY = {"mean": 0.5, "std": 0.5}  # timm's configuration speaks of three channels


@pytest.mark.parametrize("args", VARIANTS, ids=str)
def test_prepared_and_staged_the_model_computes_the_same(args: dict[str, Any]) -> None:
    """Only the patch embedding (a product in place of a convolution) and attention (explicit in place of fused) change:
    sums of at most 48 and 17 terms in another order, through two blocks. 1e-5 of the largest output is 170 eps."""
    args = TINY_ARGS | args
    loaded = load_tiny(model_args=args, preprocess=GREY if "in_chans" in args else {})
    before = architecture(TINY, args, seed=0)
    x = torch.randn(3, *FAMILY.input_size(before), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, prepared = before(x), loaded.model(x)
    assert float((prepared - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert torch.equal(run(loaded.stages, x), prepared)  # the same operators in the same order
    assert not torch.allclose(run(loaded.stages[:-2] + loaded.stages[-1:], x), prepared, rtol=1e-2)


@pytest.mark.parametrize("args", VARIANTS, ids=str)
def test_every_linear_is_a_site_of_exactly_one_stage(args: dict[str, Any]) -> None:
    loaded = load_tiny(model_args=TINY_ARGS | args, preprocess=GREY if "in_chans" in args else {})
    sites = [s.path for stage in loaded.stages for s in stage.sites]
    linears = [path for path, m in loaded.model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert sites == linears
    assert len(loaded.family.attention(loaded.model)) == 2


def test_a_distilled_model_keeps_its_two_heads() -> None:
    """timm averages the logits of two heads, each of its own token; both are quantized."""
    name, args = "deit_tiny_distilled_patch16_224", TINY_ARGS
    loaded, before = load_tiny(name=name), architecture(name, args, seed=0)
    x = torch.randn(3, *FAMILY.input_size(before), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, prepared = before(x), loaded.model(x)
    assert float((prepared - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert torch.equal(run(loaded.stages, x), prepared)
    assert [site.path for site in loaded.stages[-1].sites] == ["head", "head_dist"]
    assert {shape.n_tokens for shape in loaded.family.attention(loaded.model)} == {18}  # 16 patches, 2 tokens


def test_stages_of_the_tiny_model() -> None:
    stages = tiny_vit().stages
    assert [s.name for s in stages] == ["embed", "blocks.0", "blocks.1", "head"]
    assert tuple(site.path for s in stages for site in s.sites) == TINY_LAYERS
    norms = {site.path: site.norm for s in stages for site in s.sites if site.norm}
    assert norms == {
        f"blocks.{i}.{part}": f"blocks.{i}.{norm}"
        for i in range(2)
        for part, norm in (("attn.qkv", "norm1"), ("mlp.fc1", "norm2"))
    }


def test_the_linear_behind_a_norm_is_its_only_reader() -> None:
    """What folding relies on: the norm's output is the linear's input, and nobody else's."""
    loaded = tiny_vit()
    modules, seen = dict(loaded.model.named_modules()), {}
    for site in (s for stage in loaded.stages for s in stage.sites if s.norm):
        modules[str(site.norm)].register_forward_hook(lambda _m, _i, out, p=site.path: seen.update({p: out}))
        modules[site.path].register_forward_pre_hook(lambda _m, i, p=site.path: seen.update({f"{p} in": i[0]}))
    loaded.model(random_images(2).pixels)
    for path in [p for p in seen if not p.endswith(" in")]:
        assert seen[path] is seen[f"{path} in"]
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("channels", "patch", "size"), [(3, (4, 4), (16, 16)), (1, (2, 5), (8, 15)), (4, (3, 1), (9, 2))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_patch_tokens_are_the_convolution(
    channels: int, patch: tuple[int, int], size: tuple[int, int], bias: bool
) -> None:
    """Products of small integers: exact in float32, so whichever way they are added."""
    generator = torch.Generator().manual_seed(0)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=generator).float()

    conv = nn.Conv2d(channels, 6, patch, stride=patch, bias=bias).requires_grad_(False)
    for p in conv.parameters():
        p.copy_(integers(*p.shape))
    x = integers(2, channels, *size)
    tokens = PatchTokens(conv, nn.Identity())(x)
    assert torch.equal(tokens, conv(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("name", "args", "names"),
    [
        ("resnet18", {}, "ResNet"),
        ("swinv2_tiny_window8_256", {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)}, "a SwinTransformerV2"),
        ("deit3_small_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2, "global_pool": "map"}, "attn_pool"),
        ("vit_small_patch16_18x2_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, "blocks.0 is a Parallel"),
        (TINY, TINY_ARGS | {"global_pool": "map"}, "attn_pool is a AttentionPoolLatent"),
        (TINY, TINY_ARGS | {"dynamic_img_size": True}, "dynamic_img_size"),
        (TINY, TINY_ARGS | {"norm_layer": "rmsnorm"}, "blocks.0.norm1 is a RmsNorm"),
        (TINY, TINY_ARGS | {"scale_attn_norm": True}, "blocks.0.attn.norm is a LayerNorm"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(name: str, args: dict[str, Any], names: str) -> None:
    with pytest.raises(SpecError, match=names) as caught:
        load_tiny(name=name, model_args=args)
    assert caught.value.exit_code == 2


def test_a_convolution_that_overlaps_is_refused() -> None:
    model = architecture(TINY, TINY_ARGS)
    cast(nn.Conv2d, model.get_submodule("patch_embed.proj")).stride = (2, 2)
    with pytest.raises(SpecError, match=r"patch_embed\.proj is a Conv2d"):
        FAMILY.prepare(model)


@pytest.mark.parametrize("args", [{"img_size": 18}, {"img_size": 18, "dynamic_img_pad": True}], ids=str)
def test_an_image_that_is_no_whole_number_of_patches_is_refused_or_computed(args: dict[str, Any]) -> None:
    """As in vit_so400m_patch14_siglip_gap_384, whose 384 pixels are 27.4 patches."""
    x = random_images(2, size=18).pixels
    try:
        loaded = load_tiny(model_args=TINY_ARGS | args)
    except SpecError:
        return
    with torch.no_grad():
        assert torch.allclose(loaded.model(x), architecture(TINY, TINY_ARGS | args)(x), atol=1e-5)


def test_a_class_made_from_a_known_one_is_not_known() -> None:
    class Other(type(architecture(TINY, TINY_ARGS))):  # type: ignore[misc]
        pass

    with pytest.raises(SpecError, match="Other"):
        family_of(Other(**TINY_ARGS))


def test_an_argument_timm_refuses_is_reported_as_typed() -> None:
    with pytest.raises(SpecError, match="--model-arg embed_dimm=32"):
        load_tiny(model_args={"embed_dimm": 32})


@pytest.mark.parametrize("args", [{"act_layer": "geluu"}, {"norm_layer": "layernrom"}], ids=str)
def test_a_layer_timm_does_not_have_is_reported_as_typed(args: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"--model-arg (act|norm)_layer="):
        load_tiny(model_args=args)


def test_an_input_size_of_one_number_is_refused() -> None:
    with pytest.raises(SpecError, match="input_size"):
        load_tiny(preprocess={"input_size": 16})


def test_an_input_size_unlike_the_models_is_refused() -> None:
    with pytest.raises(SpecError, match="input_size") as caught:
        load_tiny(preprocess={"input_size": (3, 32, 32)})
    assert "--model-arg img_size" in caught.value.fix
    assert load_tiny(preprocess={"input_size": (3, 16, 16)}).identity.preprocess.input_size == (3, 16, 16)


def test_random_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, same, other = (architecture(TINY, TINY_ARGS, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_is_read_whole(tmp_path: Path, suffix: str) -> None:
    state, path = architecture(TINY, TINY_ARGS, seed=9).state_dict(), tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_tiny(checkpoint=str(path))
    got = loaded.model.state_dict()
    assert got.keys() == state.keys()
    for name, want in state.items():
        if ".qkv." in name:  # the scale of the logits lies in the rows of q
            want = torch.cat([want[: len(want) // 3] * (32 // 2) ** -0.5, want[len(want) // 3 :]])
        torch.testing.assert_close(got[name].flatten(), want.flatten(), rtol=0, atol=0)  # the filters lie flat
    assert loaded.identity.weights == "checkpoint"
    assert len(str(loaded.identity.weights_sha256)) == 64
    assert str(tmp_path) not in str(loaded.identity)  # no machine paths


def saved(tmp_path: Path, **args: Any) -> str:
    path = tmp_path / "other.safetensors"
    save_file(architecture(TINY, TINY_ARGS | args).state_dict(), path)
    return str(path)


def test_a_checkpoint_of_other_shapes_suggests_arguments_that_fit(tmp_path: Path) -> None:
    """And what is suggested is what loads it."""
    path = saved(tmp_path, embed_dim=48, depth=3, num_classes=7)
    with pytest.raises(DataError, match=r"does not fit the model: .*48 in the file, .*32 in the model") as caught:
        load_tiny(checkpoint=path)
    assert "--model-arg embed_dim=48" in caught.value.fix
    suggested = [word.split("=") for word in caught.value.fix.split() if "=" in word]
    args = TINY_ARGS | {name: int(value) for name, value in suggested}
    assert load_tiny(checkpoint=path, model_args=args).identity.weights == "checkpoint"


def test_a_checkpoint_of_another_image_size_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path, img_size=32)
    with pytest.raises(DataError, match="pos_embed") as caught:
        load_tiny(checkpoint=path)
    assert "--model-arg img_size=32" in caught.value.fix


def test_what_already_fits_is_not_suggested(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(architecture(TINY, {"depth": 1, "num_classes": 7}).state_dict(), path)
    with pytest.raises(DataError) as caught:
        load_tiny(checkpoint=str(path), model_args={"depth": 1})
    assert caught.value.fix.endswith("suggest --model-arg num_classes=7")


@pytest.mark.parametrize("surplus", [True, False])
def test_a_checkpoint_with_other_names_is_refused(tmp_path: Path, surplus: bool) -> None:
    state = architecture(TINY, TINY_ARGS).state_dict()
    if surplus:
        state["blocks.0.extra"] = torch.zeros(1)
    else:
        del state["blocks.1.norm1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="extra: not in the model" if surplus else "norm1.weight: missing in the file"):
        load_tiny(checkpoint=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read the checkpoint .*broken\{suffix}"):
        load_tiny(checkpoint=str(path))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no checkpoint"):
        load_tiny(checkpoint=str(tmp_path / "none.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    state = architecture(TINY, TINY_ARGS).state_dict()
    state["blocks.1.mlp.fc1.weight"][3, 5] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"blocks\.1\.mlp\.fc1\.weight holds NaN or infinity"):
        load_tiny(checkpoint=str(tmp_path / "w.safetensors"))


def test_pretrained_weights_out_of_reach_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erq_export.models.hub._cached", lambda _repository: False)
    monkeypatch.setattr("erq_export.models.hub._hub_answers", lambda: False)
    with pytest.raises(MachineError, match=r"vit_tiny_patch16_224\.augreg_in21k_ft_in1k") as caught:
        load(ModelSpec(name="vit_t"), seed=0)
    assert "--checkpoint FILE" in caught.value.fix
    assert caught.value.exit_code == 3


def test_the_demo_brings_its_own_weights_and_preprocessing() -> None:
    loaded = load(ModelSpec(name="demo"), seed=0)
    assert (loaded.identity.weights, loaded.identity.timm_name) == ("bundled", TINY)
    assert loaded.identity.preprocess.input_size == (3, 32, 32)
    assert loaded.identity.preprocess.crop_pct == 1.0


def test_submodule_is_strict_about_kinds() -> None:
    model = tiny_vit().model
    assert isinstance(submodule(model, "head", nn.Linear), nn.Linear)
    with pytest.raises(TypeError, match="head is a Linear, expected LayerNorm"):
        submodule(model, "head", nn.LayerNorm)
