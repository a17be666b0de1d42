"""Swin: shifted windows, masks and merging change neither what is computed, nor what is folded, nor what is exported."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import timm
import timm.models.swin_transformer as timm_swin
import torch
from onnx import numpy_helper
from timm.layers import RmsNorm
from tiny_swin import SIZE, SWIN_ARGS, SWIN_LAYERS, TINY_SWIN, tiny_swin
from tiny_vit import calibrated_bundle, random_images, tiny_spec
from torch import nn

from erq_export.backends.tensorrt import available
from erq_export.calibrate.known_ranges import KnownRanges
from erq_export.calibrate.ranges import input_grids
from erq_export.calibrate.setting import Setting
from erq_export.contract.bundle import Bundle
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.errors import SpecError
from erq_export.contract.manifest import Claims, GraphManifest
from erq_export.contract.sites import Site, Stage
from erq_export.contract.spec import ModelSpec
from erq_export.contract.targets import TARGETS
from erq_export.data.calibration_set import CalibrationSet
from erq_export.exporters.onnx.write import lowered, marker_graph, rebound, save
from erq_export.exporters.tensorrt.build import build
from erq_export.models.family import PatchTokens, family_of, run
from erq_export.models.loading import Loaded, load
from erq_export.models.names import alias_of, architecture
from erq_export.models.rebuild import reference_model
from erq_export.models.swin import FAMILY
from erq_export.validate.parity.check import check_parity
from erq_export.validate.runners import OnnxRuntimeRunner

GRAPHS = ("onnx", "tensorrt-rtx")
PADDED = {"window_size": 3}  # 16 and 8 tokens a side: the last window of each row is filled up with zeros
VARIANTS: list[dict[str, Any]] = [
    {},
    PADDED,
    {"img_size": (24, 40)},  # 12 × 20 tokens, then 6 × 10: the second stage pads
    {"img_size": (30, 18), "window_size": 3},  # 15 × 9 tokens: merging pads
    {"window_size": (16, 4)},  # the first stage's window is as high as its image; the second's shrinks to 8 × 4
    {"window_size": 16, "always_partition": True},  # the second stage has 4 times more padding than tokens
    {"qkv_bias": False},
    {"head_dim": 8},
    {"num_classes": 0},
]
MAX_POOL = {"global_pool": "max"}
BUILDS_MAX_POOL = tuple(map(int, timm.__version__.split(".")[:3])) >= (1, 0, 31)  # earlier ones assert "" or "avg"
if BUILDS_MAX_POOL:
    VARIANTS.append(MAX_POOL)


def images(n: int = 12, *, seed: int = 0) -> CalibrationSet:
    return random_images(n, seed=seed, size=SIZE)


@pytest.mark.parametrize("args", VARIANTS, ids=str)
def test_prepared_and_staged_the_model_computes_the_same(args: dict[str, Any]) -> None:
    """A product in place of a convolution, and position bias and mask added to each other before they are added to the
    scores: through four blocks, 1e-5 of the largest output is 170 eps."""
    loaded, before = tiny_swin(**args), architecture(TINY_SWIN, SWIN_ARGS | args, seed=0)
    norms = {k: v for k, v in loaded.model.state_dict().items() if "norm" in k}
    before.load_state_dict(norms, strict=False)
    x = torch.randn(3, *FAMILY.input_size(before), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, prepared = before(x), loaded.model(x)
    assert float((prepared - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert torch.equal(run(loaded.stages, x), prepared)  # the same operators in the same order
    assert not torch.allclose(run(loaded.stages[:-2] + loaded.stages[-1:], x), prepared, rtol=1e-2)


@torch.no_grad()
def test_without_its_masks_the_model_computes_something_else() -> None:
    """The equality above would say nothing if the shifted windows did not matter."""
    loaded, x = tiny_swin(), images(2).pixels
    before = loaded.model(x)
    for j in (0, 1):
        attn = cast(Any, loaded.model.get_submodule(f"layers.{j}.blocks.1.attn"))
        assert int((attn.bias < -50).sum()) > 0
        attn.bias.clamp_(min=-50).masked_fill_(attn.bias <= -50, 0)
    assert not torch.allclose(loaded.model(x), before, rtol=1e-3)


@pytest.mark.parametrize("args", VARIANTS, ids=str)
def test_every_linear_is_a_site_of_exactly_one_stage(args: dict[str, Any]) -> None:
    loaded = tiny_swin(**args)
    sites = [s.path for stage in loaded.stages for s in stage.sites]
    assert sites == [path for path, m in loaded.model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert len(loaded.family.attention(loaded.model)) == 4


def test_stages_of_the_tiny_model() -> None:
    stages = tiny_swin().stages
    blocks = [[f"layers.{i}.blocks.{j}" for j in range(2)] for i in range(2)]
    assert [s.name for s in stages] == ["embed", *blocks[0], "layers.1.downsample", *blocks[1], "head"]
    assert tuple(site.path for s in stages for site in s.sites) == SWIN_LAYERS
    norms = {site.path: site.norm for s in stages for site in s.sites if site.norm}
    assert norms == {"layers.1.downsample.reduction": "layers.1.downsample.norm"} | {
        f"{block}.{part}": f"{block}.{norm}"
        for block in (*blocks[0], *blocks[1])
        for part, norm in (("attn.qkv", "norm1"), ("mlp.fc1", "norm2"))
    }


@pytest.mark.parametrize("args", VARIANTS, ids=str)
@torch.no_grad()
def test_a_linear_behind_a_norm_reads_its_rows_and_nothing_else(args: dict[str, Any]) -> None:
    """What folding relies on: rolled and cut into windows, the rows are the same, each once."""
    loaded = tiny_swin(**args)
    modules, seen = dict(loaded.model.named_modules()), {}
    paired = [s for stage in loaded.stages for s in stage.sites if s.norm]
    for site in paired:
        modules[str(site.norm)].register_forward_hook(lambda _m, _i, out, p=site.path: seen.update({p: out}))
        modules[site.path].register_forward_pre_hook(lambda _m, i, p=site.path: seen.update({f"{p} in": i[0]}))
    loaded.model(torch.randn(2, *loaded.identity.preprocess.input_size, generator=torch.Generator().manual_seed(0)))
    assert paired
    for path in (site.path for site in paired):
        rows, read = (sorted(map(tuple, seen[key].flatten(0, -2).tolist())) for key in (path, f"{path} in"))
        assert rows == read


def change_by_folding(loaded: Loaded, stages: tuple[Stage, ...]) -> float:
    """Change of the logits, relative to the largest, once every site with a LayerNorm has had a 4-bit grid folded in."""
    x = images(4).pixels
    before, hidden = loaded.model(x), [x]
    for stage in stages:
        input_grids(loaded.model, stage, hidden, Setting.of(tiny_spec()), KnownRanges())
        hidden = [stage.forward(h) for h in hidden]
    return float((loaded.model(x) - before).abs().max() / before.abs().max())


SAME = 2e-6  # 30 eps: 9 folded pairs, with scales that differ between channels by some tens


@pytest.mark.parametrize("args", [{}, PADDED], ids=str)
@torch.no_grad()
def test_folding_keeps_the_function(args: dict[str, Any]) -> None:
    loaded = tiny_swin(**args)
    norm, merging = (cast(Any, loaded.model.get_submodule(f"layers.1.{p}")) for p in ("blocks.1.norm2", "downsample"))
    beta = norm.bias.clone()
    assert change_by_folding(loaded, loaded.stages) <= SAME
    assert not torch.allclose(norm.bias, beta, atol=0.1)  # something was folded
    assert float(merging.reduction.bias.abs().max()) > 0.01  # which had none


@torch.no_grad()
def test_folding_the_norm_of_a_block_that_pads_would_change_the_function() -> None:
    """Why such a block keeps its qkv unfolded: the zeros beside its tokens would have to become another constant."""

    def wrongly(site: Site) -> Site:
        return replace(site, norm=site.path.replace("attn.qkv", "norm1")) if site.role == "qkv" else site

    loaded = tiny_swin(**PADDED)
    assert all(s.norm is None for stage in loaded.stages for s in stage.sites if s.role == "qkv")
    stages = tuple(replace(stage, sites=tuple(map(wrongly, stage.sites))) for stage in loaded.stages)
    assert change_by_folding(loaded, stages) > 1000 * SAME


@dataclass(frozen=True)
class Exported:
    loaded: Loaded
    bundle: Bundle
    markers: ir.Model
    files: dict[str, Path]
    manifests: dict[str, GraphManifest]


def exported(folder: Path, args: dict[str, Any]) -> Exported:
    loaded = tiny_swin(**args)
    bundle = calibrated_bundle(loaded, images(), tiny_spec(targets=GRAPHS))
    markers, files, manifests = marker_graph(bundle), {}, {}
    for target in GRAPHS:
        graph, manifests[target] = lowered(markers, TARGETS[target], None)
        files[target] = folder / f"{target}.onnx"
        save(graph, files[target])
    return Exported(loaded, bundle, markers, files, manifests)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("plain"), {})


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("padded"), PADDED)


@pytest.fixture(params=["plain", "padded"])
def swin(request: pytest.FixtureRequest) -> Exported:
    return cast(Exported, request.getfixturevalue(request.param))


def test_the_bundle_rebuilds_the_calibrated_model_to_the_bit(swin: Exported, tmp_path: Path) -> None:
    x = images(3, seed=7).pixels
    swin.bundle.save(tmp_path)
    with torch.no_grad():
        want = swin.loaded.model(x)
        assert torch.equal(reference_model(swin.bundle)(x), want)
        assert torch.equal(reference_model(Bundle.load(tmp_path))(x), want)
    assert tuple(swin.bundle.layers) == SWIN_LAYERS


@pytest.mark.parametrize("target", GRAPHS)
def test_the_file_carries_the_bundles_integers(plain: Exported, target: str) -> None:
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(plain.files[target]).graph.initializer}
    assert {n for n, a in arrays.items() if a.dtype == np.int8 and a.ndim == 2} == {
        f"{p}.weight_q" for p in SWIN_LAYERS
    }
    for path, layer in plain.bundle.layers.items():
        assert np.array_equal(arrays[f"{path}.weight_q"], layer.weight_q.numpy().T)


@pytest.mark.parametrize("target", GRAPHS)
def test_position_bias_and_mask_are_one_constant_per_block(plain: Exported, target: str) -> None:
    """Nothing gathers at run time; 16 and 4 windows of 16 tokens and 2 and 4 heads where windows are shifted."""
    graph = onnx.load(plain.files[target]).graph
    assert not {n.op_type for n in graph.node} & {"Gather", "GatherND", "ScatterND", "Where", "Range"}
    constants = {t.name: tuple(t.dims) for t in graph.initializer}
    product = {out for n in graph.node if n.op_type == "MatMul" for out in n.output}
    biases = [constants.get(n.input[1]) for n in graph.node if n.op_type == "Add" and n.input[0] in product]
    heads = [dims[1] for dims in biases if dims is not None and len(dims) == 4]
    assert heads == [2, 16 * 2, 4, 4 * 4]
    claims = Claims(gemm={"int8": len(SWIN_LAYERS)}, attention={TARGETS[target].carrier: 4})
    assert plain.manifests[target].claims == claims


@pytest.mark.parametrize("target", GRAPHS)
def test_only_what_adds_something_is_padded(plain: Exported, padded: Exported, target: str) -> None:
    """One Pad before each block's windows, none before merging, whose sides are even."""
    n_pads = [sum(n.op_type == "Pad" for n in onnx.load(e.files[target]).graph.node) for e in (plain, padded)]
    assert n_pads == [0, 4]


@pytest.mark.parametrize("target", GRAPHS)
def test_the_batch_is_dynamic(swin: Exported, target: str) -> None:
    """Five images at once and one by one: equal to rounding of the carrier, and what it tips over in float16."""
    runner, pixels = OnnxRuntimeRunner(swin.files[target]), images(5, seed=9).pixels
    one_by_one = torch.cat([runner.logits(p[None]) for p in pixels])
    tolerance = 1e-5 if target == "onnx" else 2e-2
    assert torch.allclose(runner.logits(pixels), one_by_one, rtol=0, atol=tolerance)


@pytest.mark.parametrize("target", GRAPHS)
def test_parity_finds_nothing(swin: Exported, target: str) -> None:
    """On 8 images: the head sees the mean over tokens, so little reaches its few codes that with 2 the floor may be 0."""
    report = check_parity(
        reference_model(swin.bundle),
        swin.files[target],
        swin.manifests[target],
        swin.bundle.layers,
        images(8, seed=5).pixels,
    )
    assert report.problems() == []
    assert sum(layer.codes.mismatches + layer.accumulators.mismatches for layer in report.layers) == 0
    assert set(report.executed.values()) <= {"MatMulIntegerToFloat"}


def test_on_tensorrt_the_quantizer_behind_a_norm_divides_in_float32(swin: Exported) -> None:
    """Also where roll, padding and windows lie between the two."""
    model = onnx.shape_inference.infer_shapes(onnx.load(swin.files["tensorrt-rtx"]), strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.value_info, *model.input)}
    for node in model.node:
        if node.op_type == "QuantizeLinear":
            float32 = types[node.input[0]] == onnx.TensorProto.FLOAT
            assert float32 == any(p in node.name for p in ("qkv", "fc1", "reduction", "patch_embed")), node.name


def test_a_trace_rebound_to_its_own_bundle_gives_the_same_bytes(plain: Exported, tmp_path: Path) -> None:
    """So every tensor has a place of its own: neither masks nor norms were merged."""
    again = rebound(plain.markers, plain.bundle)
    assert again is not None
    for target in GRAPHS:
        save(lowered(again, TARGETS[target], None)[0], tmp_path / "rebound.onnx")
        assert (tmp_path / "rebound.onnx").read_bytes() == plain.files[target].read_bytes()


@pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_tensorrt_multiplies_every_layer_in_int8_and_fuses_every_attention(swin: Exported, tmp_path: Path) -> None:
    record = build(
        swin.files["tensorrt-rtx"],
        swin.manifests["tensorrt-rtx"],
        tmp_path,
        package="tensorrt_rtx",
        asked=EngineSpec(batch=(1, 8, 32), capability=("8.9",)),
        gpu=None,
        on_progress=None,
    )
    assert record.problems == ()
    assert (record.plan.gemm["int8"], record.plan.attention) == (len(SWIN_LAYERS), {"float16": 4})


def test_patch_tokens_in_rows_and_columns_are_the_convolution() -> None:
    """Products of small integers: exact in float32, in whatever order they are added."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 6, (2, 5), stride=(2, 5)).requires_grad_(False)
    for p in conv.parameters():
        p.copy_(torch.randint(-8, 9, p.shape, generator=generator).float())
    x = torch.randint(-8, 9, (2, 3, 8, 15), generator=generator).float()
    tokens = PatchTokens(conv, nn.Identity(), flatten=False)(x)
    assert torch.equal(tokens, conv(x).permute(0, 2, 3, 1))


def test_the_papers_names_lead_to_the_papers_weights() -> None:
    for name, tag in (("tiny", "ms_in1k"), ("small", "ms_in1k"), ("base", "ms_in22k_ft_in1k")):
        alias = alias_of(f"swin_{name[0]}")
        assert alias.timm_name == f"swin_{name}_patch4_window7_224.{tag}"
        assert alias.preprocess == {"crop_pct": 0.9}


def test_max_pooling_is_built_or_refused_as_timm_does() -> None:
    """Where timm builds it, it is one of the variants above; where it does not, the refusal names the argument."""
    if BUILDS_MAX_POOL:
        x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        maximum, mean = (tiny_swin(**args).model(x) for args in (MAX_POOL, {}))
        assert not torch.allclose(maximum, mean, rtol=1e-2)
    else:
        with pytest.raises(SpecError, match=r"timm cannot build .* --model-arg global_pool=max"):
            tiny_swin(**MAX_POOL)


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({"dynamic_img_size": True}, "dynamic_img_size"),
        ({"strict_img_size": False}, "dynamic_img_size"),
        ({"global_pool": ""}, r"head\.global_pool"),
        ({"img_size": 33}, "no whole number of 2 × 2 patches"),
        ({"qk_norm": True}, "--model-arg qk_norm=True"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(args: dict[str, Any], names: str) -> None:
    with pytest.raises(SpecError, match=names):
        load(ModelSpec(name=TINY_SWIN, pretrained=False, model_args=SWIN_ARGS | args), seed=0)


class Merging(timm_swin.PatchMerging):
    """Somebody's own, whose forward may do anything."""


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("layers.0.blocks.1.norm1", RmsNorm(32)),
        ("layers.1.blocks.0.norm2", nn.LayerNorm(64, elementwise_affine=False)),
        ("layers.1.downsample", Merging(32)),
        ("layers.1.downsample.norm", nn.Identity()),
        ("layers.0.blocks.0.mlp.norm", nn.LayerNorm(128)),
        ("layers.0.blocks.0.attn", nn.Identity()),
        ("head", nn.Linear(64, 5)),
    ],
)
def test_a_module_that_is_not_understood_is_refused_by_its_path(path: str, module: nn.Module) -> None:
    model = architecture(TINY_SWIN, SWIN_ARGS)
    model.set_submodule(path, module)
    assert family_of(model).name == "swin"
    with pytest.raises(SpecError, match=rf"{path} is a {type(module).__name__}"):
        FAMILY.prepare(model)
