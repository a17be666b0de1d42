"""A plan is read for what it proves: integer is claimed for a layer only if every operand it multiplies is integer."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from erq_export.contract.engine import PlanSummary
from erq_export.contract.manifest import AttentionOperator, Claims, GraphManifest, Sizes
from erq_export.exporters.tensorrt.build import claims_broken, unfused
from erq_export.exporters.tensorrt.plan import (
    PlanLayer,
    Tensor,
    attention_by_operator,
    parse_plan,
    plan_text,
    precision_by_node,
    products_merged,
    summarize,
)

DATA = Path(__file__).parents[1] / "golden"
PER_CHANNEL = (DATA / "rtx_plan_per_channel_qkv.txt").read_text()  # one ViT-S block whose qkv fell back to f16
INT8_ATTENTION = (DATA / "rtx_plan_int8_attention.txt").read_text()  # window attention, i8 with an f16 position bias


def gemm(
    *inputs: Tensor, weight: Tensor = ("i8", (64, 64)), kind: str = "gemm", name: str = "x", node: str = "a/MatMul"
) -> PlanLayer:
    output = ("f16", (-1, 64))
    return PlanLayer(
        name=name, kind=kind, tactic="", inputs=inputs, constants=(weight,), outputs=(output,), nodes=(node,)
    )


I8, F16 = ("i8", (-1, 64)), ("f16", (-1, 64))


def test_a_captured_plan_gives_its_counts() -> None:
    assert summarize(parse_plan(PER_CHANNEL)) == PlanSummary(
        gemm={"int8": 3, "float16": 1}, conv={}, attention={"float16": 1}, kernels=9, layers=14
    )
    assert summarize(parse_plan(INT8_ATTENTION)) == PlanSummary(
        gemm={"int8": 2}, conv={}, attention={"int8": 1}, kernels=3, layers=6
    )


def test_a_layer_is_read_completely() -> None:
    layer = next(layer for layer in parse_plan(PER_CHANNEL) if layer.name.startswith("b0.fc1/MatMul"))
    assert layer == PlanLayer(
        name="b0.fc1/MatMul_myl0_18",
        kind="gemm",
        tactic="__myelin_CASK_STUB",
        inputs=(("i8", (-1, 384)),),
        constants=(("i8", (384, 1536)), ("f32", (1,)), ("f32", (1,))),
        outputs=(("f16", (-1, 1536)),),
        nodes=("b0.fc1/MatMul", "b0.fc1.in/Dequantize", "b0.fc1/weight/Dequantize"),
    )


@pytest.mark.parametrize("log", [PER_CHANNEL, INT8_ATTENTION])
def test_no_layer_tensor_or_node_is_lost(log: str) -> None:
    layers = parse_plan(log)
    assert len(layers) == log.count("LayerType: ")
    tensors = [tensor for layer in layers for tensor in (*layer.inputs, *layer.constants, *layer.outputs)]
    assert len(tensors) == log.count("Dimensions: ")
    assert sum(len(layer.nodes) for layer in layers) == log.count("[ONNX Layer: ")


def test_the_layer_that_fell_back_is_named_and_no_other() -> None:
    """fc1 and fc2 too appear in the Metadata of kernels that do not multiply (their epilogues)."""
    assert precision_by_node(parse_plan(PER_CHANNEL)) == {
        "b0.qkv": "float16",
        "b0.proj": "int8",
        "b0.fc1": "int8",
        "b0.fc2": "int8",
    }


def test_tensorrt_10_lines_are_read_too() -> None:
    log = """Layers:
Name: a/MatMul_myl0_1, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1,64], Format/Datatype: Int8 }, \
{ Name: w, Dimensions: [64,64], Format/Datatype: Int8 }, { Name: alpha, Dimensions: [1], Format/Datatype: Float }], \
Outputs: [ { Name: y, Dimensions: [1,64], Format/Datatype: Half }], TacticName: t, StreamId: 0, \
Metadata: [ONNX Layer: a/MatMul][ONNX Layer: a/Dequantize]
Name: c, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: [1,3,8,8], \
Format/Datatype: Row major linear FP32 }], Outputs: [ { Name: y, Location: Device, Dimensions: [1,4,1,1], \
Format/Datatype: Row major linear FP32 }], ParameterType: Convolution, TacticName: t, StreamId: 0, \
Metadata: [ONNX Layer: c/Conv]
"""
    layers = parse_plan(log)
    assert (summarize(layers).gemm, summarize(layers).conv) == ({"int8": 1}, {"float32": 1})
    assert precision_by_node(layers) == {"a": "int8", "c": "float32"}


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        (gemm(I8), "int8"),
        (gemm(F16), "float16"),  # weight-only quantization
        (gemm(("f16", (1, 64))), "float16"),  # the same for one row
        (gemm(I8, weight=("f16", (64, 64))), "float16"),
        (gemm(I8, ("f16", (1, 64))), "int8"),  # a bias is no operand
        (gemm(I8, kind="runtime_fusion", name="__myl_FcAdd_myl0_1"), "int8"),
        (gemm(I8, kind="runtime_fusion", name="__myl_CastMulFc_myl0_1"), "float16"),  # widened, then multiplied
        (gemm(I8, I8, I8, F16, kind="kgen", name="_gemm_mha_v2_myl0_4"), "int8"),  # F16: a mask
        (gemm(I8, I8, F16, kind="kgen", name="_gemm_mha_v2_myl0_4"), "float16"),
        (
            gemm(F16, F16, F16, ("f32", (64, 64)), kind="kgen", name="_gemm_mha_v2_myl0_4"),
            "float16",
        ),  # a mask in float32
        (gemm(("fp8", (-1, 64)), weight=("fp8", (64, 64))), "float8"),
        (gemm(("f32", (-1, 64)), weight=("f16", (64, 64))), "float32"),  # the widest on ties
        (gemm(I8, kind="kgen"), None),
    ],
)
def test_integer_needs_integer_operands(layer: PlanLayer, precision: str | None) -> None:
    assert layer.precision == precision


def test_a_module_called_mha_is_not_fused_attention() -> None:
    assert gemm(I8, name="layers.0.mha.qkv/MatMul_myl0_2").role == "gemm"


def test_one_floating_part_makes_the_node_floating() -> None:
    assert precision_by_node([gemm(I8), gemm(F16)]) == {"a": "float16"}
    assert precision_by_node([gemm(I8), gemm(I8)]) == {"a": "int8"}


def test_what_is_not_seen_to_multiply_is_not_claimed() -> None:
    assert precision_by_node([gemm(I8, kind="kgen")]) == {"a": "float32"}
    assert precision_by_node([gemm(I8, node="a/Add")]) == {}


def test_the_text_forgets_serial_numbers_and_nothing_else() -> None:
    renumbered = re.sub(r"__mye\d+", "__mye7", re.sub(r"_myl0_(\d+)", r"_myl0_1\1", PER_CHANNEL))
    assert renumbered != PER_CHANNEL
    text = plan_text(parse_plan(PER_CHANNEL))
    assert plan_text(parse_plan(renumbered)) == text
    assert plan_text(parse_plan(PER_CHANNEL.replace("[384,1536]", "[384,1537]"))) != text
    assert plan_text(parse_plan(PER_CHANNEL.replace("Datatype: Int8", "Datatype: Half"))) != text


def test_the_text_has_one_readable_line_per_kernel() -> None:
    lines = plan_text(parse_plan(PER_CHANNEL)).splitlines()
    assert len(lines) == summarize(parse_plan(PER_CHANNEL)).layers
    assert "int8 gemm           b0.fc1/MatMul: i8[-1,384] i8[384,1536] -> f16[-1,1536]" in lines
    assert "fp   runtime_fusion b0.qkv/MatMul: i8[-1,384] f16[1,384,1152] -> f16[1,-1,1152]" in lines


def test_the_last_plan_of_a_log_counts() -> None:
    assert parse_plan(PER_CHANNEL + INT8_ATTENTION) == parse_plan(INT8_ATTENTION)
    assert parse_plan("Name: x, LayerType: gemm, outside of a plan") == ()


FUSED, APART, GONE = (
    AttentionOperator(
        path=path, precision="float16", scores=f"{path}/MatMul", softmax=f"{path}/S", context=f"{path}/MatMul_1"
    )
    for path in ("b0.attn", "b1.attn", "b2.attn")
)
PLAN = [  # the first block's attention is one kernel, the second's four, the third's nowhere
    gemm(F16, F16, F16, kind="kgen", name="_gemm_mha_v2_myl0_4", node=FUSED.softmax),
    gemm(F16, F16, weight=F16, node=APART.scores),
    gemm(F16, kind="kgen", node=APART.softmax),
    gemm(I8, I8, weight=I8, node=APART.context),
]


def test_each_attention_says_what_computes_it() -> None:
    assert attention_by_operator(PLAN, (FUSED, APART, GONE)) == {
        "b0.attn": "float16",
        "b1.attn": "not fused: 1 INT8 GEMMs, 1 FP16 GEMMs and 1 other kernels",
        "b2.attn": "not fused: no GEMM of its own and 0 other kernels",
    }


def attentions(*operators: AttentionOperator) -> GraphManifest:
    """A graph of these attentions and nothing else."""
    return GraphManifest(
        target="tensorrt-rtx",
        opset=20,
        claims=Claims(gemm={}, attention={"float16": len(operators)}),
        bytes=Sizes(float32=0, int8=0, int4=0, written=0),
        sites=(),
        attention_operators=operators,
    )


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_an_attention_that_is_not_fused_breaks_a_claim_of_int8_and_is_told_otherwise(precision: str) -> None:
    """Its products are GEMMs of the plan that no layer claims; they are not counted against the layers."""
    manifest = attentions(*(structs.replace(operator, precision=precision) for operator in (FUSED, APART)))
    attention = attention_by_operator(PLAN, (FUSED, APART))
    problems, told = claims_broken(manifest, PLAN, {}, attention), unfused(manifest, attention)
    if precision == "float16":
        assert (problems, told) == ([], [f"b1.attn: {attention['b1.attn']}"])
    else:
        assert told == []
        assert problems == [
            "b0.attn is claimed as fused INT8 attention and runs as fused FP16 attention",
            f"b1.attn is claimed as fused INT8 attention and runs {attention['b1.attn']}",
        ]


def test_a_gemm_or_an_attention_that_nothing_claims_is_counted() -> None:
    manifest = attentions(FUSED)
    problems = claims_broken(manifest, PLAN, {}, attention_by_operator(PLAN, (FUSED,)))
    assert problems == [
        "the graph claims 0 INT8 GEMMs, the plan has 1",
        "the graph claims 0 FP16 GEMMs, the plan has 1",
    ]
    second = gemm(F16, F16, F16, kind="kgen", name="_gemm_mha_v2_myl0_9", node="elsewhere")
    problems = claims_broken(manifest, [PLAN[0], second], {}, {"b0.attn": "float16"})
    assert problems == ["the plan has 2 fused FP16 attentions, 1 are the graph's own"]


def test_a_gemm_that_computes_two_products_side_by_side_counts_for_both() -> None:
    """Classes and boxes of a detector have one input: one GEMM makes them. A node of two GEMMs is no proof of that."""
    both = replace(gemm(I8), nodes=("a/MatMul", "b/MatMul"))
    assert products_merged([both, gemm(I8, node="c/MatMul")], {"a/MatMul", "b/MatMul", "c/MatMul"}) == {"int8": 1}
    assert not +products_merged([both, gemm(I8, node="b/MatMul")], {"a/MatMul", "b/MatMul"})
    assert not +products_merged([both], {"a/MatMul"})
