"""`--attention int8`: every operand in integers on every target, both products integer where it is claimed, or refused."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from msgspec import structs
from parity_fixtures import constant, damaged
from PIL import Image
from tiny_swin import tiny_swin
from tiny_vit import TINY, TINY_ARGS, calibrated_bundle, random_images, tiny_spec, tiny_vit

from erq_export.backends.tensorrt import available
from erq_export.contract.bundle import Bundle
from erq_export.contract.engine import EngineRecord
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.errors import DataError, EngineError, SpecError
from erq_export.contract.manifest import Claims, GraphManifest, by_path
from erq_export.contract.parity import ParityReport
from erq_export.contract.sites import OPERANDS, AttentionShape
from erq_export.contract.targets import TARGETS
from erq_export.data.given import FromSource
from erq_export.exporters.onnx import linear as qdq
from erq_export.exporters.onnx.operands import softmax_narrowing
from erq_export.exporters.onnx.write import lowered, marker_graph, rebound, save
from erq_export.exporters.tensorrt.build import build
from erq_export.flow import run as pipeline
from erq_export.flow.build import build as build_run
from erq_export.flow.job import Job, resolve
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT
from erq_export.models.limits import check_attention
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import attention_shapes, reference_model
from erq_export.validate.parity.attention import check_product
from erq_export.validate.parity.check import check_parity
from erq_export.validate.parity.executed import FLOAT_GEMMS, INTEGER_GEMMS, executed_ops

TINIES: dict[str, Callable[[], Loaded]] = {"vit": tiny_vit, "swin": tiny_swin}
GRAPHS = ("onnx", "tensorrt-rtx")
N_IMAGES = 4
needs_rtx = pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


@dataclass(frozen=True)
class Case:
    """One tiny model with quantized attention, written for each target."""

    bits: int
    bundle: Bundle
    markers: ir.Model
    files: dict[str, Path]
    manifests: dict[str, GraphManifest]
    pixels: torch.Tensor
    n_blocks: int


def bundle_of(tiny: Loaded, seed: int = 0, **spec: Any) -> tuple[Bundle, torch.Tensor]:
    data = random_images(N_IMAGES, seed=seed, size=tiny.identity.preprocess.input_size[1])
    given = {"targets": GRAPHS, "method": "rtn", "attention": "int8"} | spec
    return calibrated_bundle(tiny, data, tiny_spec("w4a4", **given)), data.pixels


@pytest.fixture(scope="module", params=[(m, b) for m in TINIES for b in (8, 4)], ids=lambda p: f"{p[0]}-{p[1]}bit")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, bits = request.param
    loaded = TINIES[name]()
    n_blocks = len(loaded.family.attention(loaded.model))
    bundle, pixels = bundle_of(loaded, attention_bits=bits)
    folder, markers, files, manifests = tmp_path_factory.mktemp("int8"), marker_graph(bundle), {}, {}
    for target in GRAPHS:
        graph, manifests[target] = lowered(markers, TARGETS[target], None)
        files[target] = folder / f"{target}.onnx"
        save(graph, files[target])  # runs onnx's full check
    return Case(bits, bundle, markers, files, manifests, pixels, n_blocks)


@pytest.fixture(scope="module")
def vit4(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The vision transformer with 4-bit operands, for what is tried on one model only."""
    bundle, pixels = bundle_of(tiny_vit(), attention_bits=4)
    folder, markers, files, manifests = tmp_path_factory.mktemp("vit4"), marker_graph(bundle), {}, {}
    for target in GRAPHS:
        graph, manifests[target] = lowered(markers, TARGETS[target], None)
        files[target] = folder / f"{target}.onnx"
        save(graph, files[target])
    return Case(4, bundle, markers, files, manifests, pixels, 2)


def parity(case: Case, target: str, path: Path | None = None, manifest: GraphManifest | None = None) -> ParityReport:
    return check_parity(
        reference_model(case.bundle),
        path or case.files[target],
        manifest or case.manifests[target],
        case.bundle.layers,
        case.pixels,
        threads=1,
    )


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("target", GRAPHS)
def test_the_manifest_claims_every_attention_and_lists_every_operand(case: Case, target: str) -> None:
    manifest = case.manifests[target]
    assert manifest.claims == Claims(gemm={"int8": len(case.bundle.layers)}, attention={"int8": case.n_blocks})
    assert set(by_path(manifest.operands)) == set(case.bundle.operands)
    graph = onnx.load(case.files[target]).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for path, row in by_path(manifest.operands).items():
        operand = case.bundle.operands[path]
        assert (row.role, row.bits, row.container) == (operand.role, case.bits, TARGETS[target].container)
        assert (row.qmin, row.qmax) == (int(operand.grid.qmin), int(operand.grid.qmax))
        assert int(arrays[f"{path}.act_zero_point"]) == row.zero_point == (-row.qmin if target == "onnx" else 0)
        assert arrays[f"{path}.act_zero_point"].dtype == row.container
        for part in ("q", "dq"):
            assert float(arrays[f"{path}.act_scale_{part}"]) == float(operand.grid.scale)


@pytest.mark.parametrize("target", GRAPHS)
def test_a_clip_stands_where_the_grid_is_narrower_and_never_behind_the_softmax(case: Case, target: str) -> None:
    """In ONNX Runtime behind the quantizer of a layer's input, on TensorRT in front of it but for proj behind int8 attention; in
    front of that of q, k and v (docs/backends.md, "Narrowing")."""
    graph = onnx.load(case.files[target]).graph
    made_by = {out: node for node in graph.node for out in node.output}
    clips = {node.name: made_by.get(node.input[0]) for node in graph.node if node.op_type == "Clip"}
    assert not [name for name, source in clips.items() if source is not None and source.op_type == "Softmax"]
    assert not [name for name in clips if ".softmax/" in name]
    operands = [name for name in clips if name.removesuffix("/Clip").endswith((".q", ".k", ".v"))]
    assert len(operands) == (0 if case.bits == 8 else 3 * case.n_blocks)
    of_codes = {name for name, source in clips.items() if source is not None and source.op_type == "QuantizeLinear"}
    assert sum(name.endswith(".attn.proj/Clip") for name in of_codes) == case.n_blocks
    layers = set(clips) - set(operands)
    assert of_codes == (layers if target == "onnx" else {name for name in layers if name.endswith(".attn.proj/Clip")})


def test_onnx_runtime_multiplies_all_of_attention_in_integers(case: Case) -> None:
    ops = executed_ops(case.files["onnx"])
    assert sum(ops.get(op, 0) for op in INTEGER_GEMMS) == len(case.bundle.layers) + 2 * case.n_blocks
    assert not set(ops) & FLOAT_GEMMS
    assert "DequantizeLinear" not in ops  # integers are moved about, not floats


@pytest.mark.parametrize("target", GRAPHS)
def test_parity_finds_nothing_and_looked_at_every_operand_and_product(case: Case, target: str) -> None:
    found = parity(case, target)
    assert found.problems() == []
    assert [o.path for o in found.operands] == list(case.bundle.operands)
    assert len(found.operands) == len(OPERANDS) * case.n_blocks
    assert sum(o.codes.mismatches for o in found.operands) == 0
    assert min(o.codes.n for o in found.operands) > 0
    if target == "onnx":
        assert len(found.products) == 2 * case.n_blocks
        assert {p.kernel for p in found.products} == {"MatMulIntegerToFloat"}
        assert all(p.sums.n > 0 and p.sums.mismatches == 0 for p in found.products)
        assert set(found.attention.values()) == {"MatMulIntegerToFloat+QLinearMatMul"}  # proj's quantizer is behind P v
    else:  # ONNX Runtime is not what that graph is for
        assert (found.products, found.attention) == ((), {})
    assert f"{len(found.operands)} operands of attention" in found.says()


# ---------------------------------------------------------------- damages


def times(factor: float) -> Callable[[Any], Any]:
    return lambda array: array * factor


Q, PROJ = "blocks.0.attn.q", "blocks.0.attn.proj"
DAMAGES: dict[str, tuple[str, str, Callable[[Any], Any], str, str]] = {
    "scale": ("onnx", f"{Q}.act_scale_q", times(1.1), Q, "input codes"),
    "scale behind": ("onnx", f"{Q}.act_scale_dq", times(1.01), Q, "behind its dequantizer"),
    "zero point": ("onnx", f"{Q}.act_zero_point", lambda z: z + 1, Q, "input codes"),
    "softmax": ("onnx", "blocks.1.attn.softmax.act_scale_q", times(2), "blocks.1.attn.softmax", "input codes"),
    "clip": ("onnx", "blocks.1.attn.v.act_hi", times(0.7), "blocks.1.attn.v", "input codes"),
    "half: scale": ("tensorrt-rtx", f"{Q}.act_scale_q", times(1.1), Q, "input codes"),
    "half: scale behind": ("tensorrt-rtx", f"{Q}.act_scale_dq", times(1.01), Q, "behind its dequantizer"),
    "half: Clip of codes": ("tensorrt-rtx", f"{PROJ}.act_hi", lambda c: c - 3, PROJ, "input codes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_where_it_is(vit4: Case, tmp_path: Path, name: str) -> None:
    target, initializer, change, blamed, words = DAMAGES[name]
    path = damaged(vit4.files[target], tmp_path / "damaged.onnx", lambda g: constant(g, initializer, change))
    problems = parity(vit4, target, path).problems()
    assert any(p.startswith(f"{blamed}: ") and words in p for p in problems), problems
    accused = {p.split(":")[0] for p in problems}
    assert not accused & (set(vit4.bundle.operands) | set(vit4.bundle.layers)) - {blamed}, problems


def test_a_factor_beside_the_scores_is_found_between_the_layers(vit4: Case, tmp_path: Path) -> None:
    """The scale of the logits is folded into q; one that is applied again reaches the softmax's quantizer."""

    def scaled_again(graph: ir.Graph) -> None:
        softmax = next(node for node in graph if node.name == "blocks.1.attn/Softmax")
        tensor = ir.tensor(np.asarray(0.25, np.float32), name="again")
        factor = ir.Value(name="again", const_value=tensor)
        graph.register_initializer(factor)
        node = ir.node("Mul", [softmax.inputs[0], factor], name="again/Mul")
        node.outputs[0].name = "again.out"
        graph.insert_before(softmax, [node])
        softmax.replace_input_with(0, node.outputs[0])

    path = damaged(vit4.files["onnx"], tmp_path / "scaled.onnx", scaled_again)
    problems = parity(vit4, "onnx", path).problems()
    assert any(p.startswith("blocks.1.attn.softmax: with equal layers before it") for p in problems), problems


def test_an_operand_without_a_claim_and_a_float_product_are_problems(vit4: Case) -> None:
    manifest = vit4.manifests["onnx"]
    missing = structs.replace(manifest, operands=tuple(row for row in manifest.operands if row.path != Q))
    assert (
        f"{Q}: the reference has this operand, the file has no integers for it"
        in parity(vit4, "onnx", manifest=missing).problems()
    )
    half = structs.replace(vit4.manifests["tensorrt-rtx"], target="onnx")  # float16 Q/DQ is not fused there
    problems = parity(vit4, "tensorrt-rtx", manifest=half).problems()
    assert [p for p in problems if p.startswith("blocks.0.attn: claimed integer attention, ONNX Runtime runs ")]


def test_a_product_that_the_file_lacks_is_refused(vit4: Case) -> None:
    rows = by_path(vit4.manifests["onnx"].operands)
    pair = rows[Q], rows["blocks.0.attn.k"]
    with pytest.raises(DataError, match="no product 'elsewhere'"):
        check_product(ir.load(vit4.files["onnx"]).graph, "elsewhere", pair, (torch.zeros(1), torch.zeros(1)))


# ---------------------------------------------------------------- rebinding


def test_a_rebound_trace_is_a_trace(vit4: Case, tmp_path: Path) -> None:
    """Another seed, another number of bits: scales, bounds and bits of every operand are the new bundle's."""
    other = bundle_of(tiny_vit(), seed=3, attention_bits=5)[0]
    again = rebound(vit4.markers, other)
    assert again is not None
    for target in GRAPHS:
        paths = tmp_path / "rebound.onnx", tmp_path / "traced.onnx"
        found = [lowered(graph, TARGETS[target], None) for graph in (again, marker_graph(other))]
        for (graph, _), path in zip(found, paths, strict=True):
            save(graph, path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert found[0][1] == found[1][1]
        assert paths[0].read_bytes() != vit4.files[target].read_bytes()


def test_quantized_and_float_attention_have_no_trace_in_common(vit4: Case, bundle: Bundle) -> None:
    assert rebound(vit4.markers, bundle) is None
    assert rebound(marker_graph(bundle), vit4.bundle) is None


# ---------------------------------------------------------------- refusals


def write_images(folder: Path, n: int) -> None:
    folder.mkdir()
    for i in range(n):
        noise = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (AttentionShape(path="a", n_tokens=197, head_dim=80), "heads of a have 80 channels, .* exists for 16, 32, 64"),
        (AttentionShape(path="a", n_tokens=577, head_dim=64), "a has 577 tokens, .* ends at 512"),
        (AttentionShape(path="a", n_tokens=17, head_dim=32, in_heads=True), "qk_norm"),
    ],
)
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_what_a_target_cannot_fuse_is_refused_with_its_numbers(shape: AttentionShape, words: str, target: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        check_attention([shape], ["onnx", target])
    assert "--attention fp16" in caught.value.fix


def test_what_can_be_fused_is_not_refused() -> None:
    largest = [AttentionShape(path="a", n_tokens=512, head_dim=d) for d in (16, 32, 64)]
    check_attention(largest, TARGETS)
    check_attention([AttentionShape(path="a", n_tokens=577, head_dim=80)], ["onnx"])  # has no limits


def test_the_published_attention_needs_its_operands_too() -> None:
    shape = AttentionShape(path="a", n_tokens=17, head_dim=32, in_heads=True)
    with pytest.raises(SpecError, match=r"--attention paper: a normalises q and k within heads"):
        check_attention([shape], ["reference"], "paper")


def job(photos: Path, targets: tuple[str, ...], **model_args: Any) -> Job:
    model = {"name": TINY, "pretrained": False, "model_args": TINY_ARGS | model_args}
    how = {"bits": "w4a4", "method": "rtn", "attention": "int8"}
    return resolve(model | how | {"targets": targets, "data": str(photos), "calib": 2})


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"embed_dim": 48}, "24 channels"),
        ({"img_size": 96}, "577 tokens"),  # 24 × 24 patches and the class token
        ({"qk_norm": True}, "qk_norm"),
    ],
)
def test_a_run_is_refused_before_anything_is_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: dict[str, Any], words: str
) -> None:
    write_images(tmp_path / "photos", 2)
    monkeypatch.setattr(FromSource, "draw", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(SpecError, match=words):
        pipeline.run(job(tmp_path / "photos", ("tensorrt-rtx",), **args), tmp_path / "out", SILENT, store=Store.none())
    assert not (tmp_path / "out").exists()


def test_a_bundle_for_onnx_is_refused_for_a_target_without_its_attention(tmp_path: Path) -> None:
    """Heads of 24 channels: fine in ONNX Runtime, no fused kernel in TensorRT."""
    other = bundle_of(tiny_vit(embed_dim=48), targets=("onnx",))[0]
    asked = job(tmp_path / "photos", ("onnx",), embed_dim=48)
    (tmp_path / "bundle").mkdir()
    other.save(tmp_path / "bundle")
    with pytest.raises(SpecError, match="24 channels"):
        build_run(asked, tmp_path, SILENT, store=Store.none(), targets=("tensorrt-rtx",))
    assert not (tmp_path / "tensorrt-rtx").exists()


@pytest.mark.parametrize(("qmin", "qmax"), [(0, 15), (0, 127)])
def test_no_clip_where_the_code_of_one_is_the_last(qmin: int, qmax: int) -> None:
    reaches, ends_before = np.float32(1 / qmax), np.float32(0.5 / qmax)
    onnx_target, tensorrt = TARGETS["onnx"], TARGETS["tensorrt-rtx"]
    for target in (onnx_target, tensorrt):
        assert softmax_narrowing(np.asarray(reaches), qmin, qmax, path="p", target=target) == "none"
    assert softmax_narrowing(np.asarray(ends_before), qmin, qmax, path="p", target=onnx_target) == "float"
    with pytest.raises(EngineError, match=f"the code of 1 is {2 * qmax}, its grid ends at {qmax}"):
        softmax_narrowing(np.asarray(ends_before), qmin, qmax, path="p", target=tensorrt)


def test_a_bundle_for_onnx_alone_has_scales_that_tensorrt_lacks() -> None:
    other = bundle_of(tiny_vit(), targets=("onnx",))[0]
    bare = dataclasses.replace(other, operands={})
    assert attention_shapes(bare) == attention_shapes(other)
    with pytest.raises(EngineError, match="tensorrt-rtx"):
        lowered(marker_graph(other), TARGETS["tensorrt-rtx"], None)


# ---------------------------------------------------------------- engines


def engine(case_file: Path, manifest: GraphManifest, folder: Path) -> EngineRecord:
    return build(
        case_file,
        manifest,
        folder,
        package="tensorrt_rtx",
        asked=EngineSpec(batch=(1, 8, 32), capability=("8.9",)),
        gpu=None,
        on_progress=None,
    )


@needs_rtx
def test_tensorrt_fuses_every_attention_in_int8(case: Case, tmp_path: Path) -> None:
    record = engine(case.files["tensorrt-rtx"], case.manifests["tensorrt-rtx"], tmp_path)
    assert (record.problems, record.unfused) == ((), ())
    assert set(record.attention.values()) == {"int8"}
    plan = record.plan
    assert plan.attention == {"int8": case.n_blocks}
    assert plan.gemm == {"int8": len(case.bundle.layers)}


@needs_rtx
@pytest.mark.parametrize("name", TINIES)
def test_tensorrt_fuses_every_attention_in_float16(name: str, tmp_path: Path) -> None:
    bundle, _ = bundle_of(TINIES[name](), attention="fp16")
    graph, manifest = lowered(marker_graph(bundle), TARGETS["tensorrt-rtx"], None)
    save(graph, tmp_path / "model.onnx")
    record = engine(tmp_path / "model.onnx", manifest, tmp_path)
    assert (record.problems, record.unfused) == ((), ())
    assert set(record.attention.values()) == {"float16"}
    assert record.plan.gemm["int8"] == len(bundle.layers)


@needs_rtx
def test_a_lost_attention_is_told_block_by_block(vit4: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A float Clip in front of proj, as it stands everywhere else, costs TensorRT the fused kernel
    (docs/backends.md, "Narrowing")."""
    monkeypatch.setattr(qdq, "follows_int8_attention", lambda _marker: False)
    graph, manifest = lowered(vit4.markers, TARGETS["tensorrt-rtx"], None)
    save(graph, tmp_path / "model.onnx")
    problems = engine(tmp_path / "model.onnx", manifest, tmp_path).problems
    for i in range(2):
        told = f"blocks.{i}.attn is claimed as fused INT8 attention and runs not fused: "
        assert any(p.startswith(told) for p in problems), problems
