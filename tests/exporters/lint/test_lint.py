"""The linter finds what is planted, nothing in what is clean, and what it claims is what the real backends do."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from lint_graphs import block, conv, gemm
from lint_plants import PLANTS, Plant
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from tiny_swin import tiny_swin
from tiny_vit import calibrated_bundle, random_images, tiny_spec, tiny_vit
from vit_graph import ViT

from erq_export.backends.onnxruntime import session
from erq_export.backends.tensorrt import available, build_engine
from erq_export.contract.errors import ErqError
from erq_export.contract.targets import TARGETS, deployable
from erq_export.exporters.lint.check import RULES, check
from erq_export.exporters.onnx.write import float_graph, ir, lowered, marker_graph, save
from erq_export.exporters.tensorrt.plan import compiled, summarize
from erq_export.validate.parity.executed import INTEGER_GEMMS, count_ops

needs_rtx = pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
NAMES = [f"{p.rule}-{p.target}-{p.at}" for p in PLANTS]


def written(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


def planted(plant: Plant, folder: Path) -> Path:
    model = plant.clean(plant.target)
    plant.damage(model)
    return written(model, folder)


# ---------------------------------------------------------------- planted and clean


def test_every_rule_has_a_planted_violation_and_says_where_it_comes_from() -> None:
    assert {plant.rule for plant in PLANTS} == {rule.id for rule in RULES}
    assert len(RULES) == len({rule.id for rule in RULES}) >= 15
    for rule in RULES:
        assert rule.source
        assert set(rule.errors) | set(rule.warnings) <= set(TARGETS)
        assert not set(rule.errors) & set(rule.warnings)


@pytest.mark.parametrize("plant", PLANTS, ids=NAMES)
def test_the_planted_violation_is_found_at_its_node(plant: Plant, tmp_path: Path) -> None:
    found = check(planted(plant, tmp_path), plant.target).findings
    at_node = [f for f in found if (f.rule, f.node) == (plant.rule, plant.at)]
    assert len(at_node) >= 1
    assert all(f.reason and f.fix for f in found)
    rule = next(rule for rule in RULES if rule.id == plant.rule)
    assert at_node[0].severity == ("error" if plant.target in rule.errors else "warning")


@pytest.mark.parametrize("target", deployable(TARGETS))
@pytest.mark.parametrize("graph", [block, conv, gemm])
def test_nothing_is_found_in_the_undamaged_graph(graph: Any, target: str, tmp_path: Path) -> None:
    assert check(written(graph(target), tmp_path), target).findings == ()


def test_a_node_without_a_name_is_called_by_its_operator_and_output(tmp_path: Path) -> None:
    model = block("tensorrt")
    for node in model.graph.node:
        node.name = ""
    next(n for n in model.graph.node if n.output[0] == "fc/Q.out").input[2] = "shifted"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(5, np.int8), "shifted"))
    (found,) = (f for f in check(written(model, tmp_path), "tensorrt").findings if f.rule == "nonzero-zero-point")
    assert found.node == "QuantizeLinear -> fc/Q.out"


# ---------------------------------------------------------------- what the backends do


def rtx_cost(path: Path) -> tuple[int, int]:
    """(floating-point products, fused integer attentions lost against one)."""
    plan = summarize(compiled(build_engine(path, package="tensorrt_rtx", compute_capabilities=("8.9",))))
    floating = sum(
        n for counts in (plan.gemm, plan.conv, plan.attention) for kind, n in counts.items() if kind != "int8"
    )
    return floating, -plan.attention.get("int8", 0)


def plain_session(path: Path) -> onnxruntime.InferenceSession:
    """As a user has it: ours switches an optimizer off. What it runs is written beside the file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ort_cost(path: Path) -> int:
    """Products that ONNX Runtime does not run in integers; the graph is run once, some fail only then."""
    made = plain_session(path)
    made.run(None, {v.name: np.ones([2, *v.shape[1:]], np.float32) for v in made.get_inputs()})
    ops = count_ops(onnx.load(path.with_suffix(".optimized.onnx")).graph.node)
    integer = INTEGER_GEMMS | {"QLinearConv"}
    products = integer | {"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "MatMulNBits"}
    return sum(n for op, n in ops.items() if op in products - integer)


@pytest.mark.parametrize(
    "plant",
    [pytest.param(p, marks=() if p.target == "onnx" else needs_rtx, id=n) for p, n in zip(PLANTS, NAMES, strict=True)],
)
def test_the_backend_shows_what_the_rule_claims(plant: Plant, tmp_path: Path) -> None:
    """Refused, or costlier than the clean graph. Where no backend can show it the damaged graph must at least be taken."""
    path = planted(plant, tmp_path)
    cost: Any = ort_cost if plant.target == "onnx" else rtx_cost
    if plant.shown == "refused":
        with pytest.raises((ErqError, Fail, InvalidGraph)) as caught:
            cost(path)
        assert str(caught.value)
        return
    clean = tmp_path / "clean.onnx"
    if plant.clean in (block, conv, gemm):
        onnx.save(plant.clean(plant.target), clean)
    elif plant.rule == "qkv-per-channel":
        ViT("scalar").save(clean)
    else:
        onnx.save(block(plant.target), clean)
    before, after = cost(clean), cost(path)
    assert after > before if plant.shown == "slower" else after == before


def test_onnx_runtime_computes_something_else_with_scales_along_the_summed_axis(tmp_path: Path) -> None:
    """weight-axis on onnx: optimised against as written. Codes of ±20 keep sums far from any kernel's saturation."""
    graphs = {}
    for axis in (0, 1):
        model = gemm("onnx")
        nodes = {n.name: n for n in model.graph.node}
        nodes["gemm"].op_type = "MatMul"
        del nodes["gemm"].attribute[:]
        for info in (model.graph.input[0], model.graph.output[0]):
            info.type.tensor_type.shape.dim.add().dim_value = 32  # (batch, 32, 32)
        tensors = {t.name: t for t in model.graph.initializer}
        codes = np.random.default_rng(1).integers(-20, 20, (32, 32)).astype(np.int8)
        tensors["gemm.weight"].CopyFrom(onnx.numpy_helper.from_array(codes, "gemm.weight"))
        scale = np.linspace(0.001, 0.01, 32).astype(np.float32)
        tensors["gemm.weight_scale"].CopyFrom(onnx.numpy_helper.from_array(scale, "gemm.weight_scale"))
        nodes["gemm/weight/DQ"].attribute[0].i = axis
        graphs[axis] = written(model, tmp_path)
        x = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
        outs = [session(graphs[axis], optimize=optimize).run(None, {"rows": x})[0] for optimize in (True, False)]
        difference = np.abs(outs[0] - outs[1]).max() / np.abs(outs[1]).max()
        assert (difference > 0.1) == (axis == 0)
        assert difference > 0.1 or difference < 1e-5
        rules = [f.rule for f in check(graphs[axis], "onnx").findings]
        assert rules == (["weight-axis"] if axis == 0 else [])


# ---------------------------------------------------------------- whole models


@pytest.mark.parametrize(
    ("bits", "options"),
    [("w4a4", {}), ("w3a5", {"attention": "int8", "pack": "int4"}), ("w8a8", {"attention": "int8"})],
    ids=str,
)
@pytest.mark.parametrize("architecture", [tiny_vit, tiny_swin])
def test_nothing_is_found_in_our_own_graphs(
    architecture: Any, bits: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Neither with integer attention nor with packed weights."""
    size = 16 if architecture is tiny_vit else 32
    spec = tiny_spec(bits, ("onnx", "tensorrt-rtx"), method="rtn", **options)
    bundle = calibrated_bundle(architecture(), random_images(size=size), spec)
    markers = marker_graph(bundle)
    for target in deployable(TARGETS):
        save(lowered(markers, TARGETS[target], None)[0], tmp_path / "graph.onnx")
        assert check(tmp_path / "graph.onnx", target).findings == ()


class Pixels(CalibrationDataReader):  # type: ignore[misc]
    """One batch of noise."""

    def __init__(self) -> None:
        self.batches = iter([{"pixels": random_images().pixels.numpy()}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float tiny model through ONNX Runtime's own quantizer, every option at its default."""
    folder = tmp_path_factory.mktemp("static")
    ir.save(float_graph(tiny_vit().model, (3, 16, 16)), folder / "float.onnx")
    quantize_static(str(folder / "float.onnx"), str(folder / "static.onnx"), Pixels())
    return folder / "static.onnx"


def test_what_onnx_runtime_quantizes_by_default_breaks_tensorrt(static: Path) -> None:
    """Counted in the file by hand: int32 biases, zero points that are not 0, Q on outputs of products."""
    graph = onnx.load(static).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    quantizers = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    shifted = {n.name for n in quantizers if constants[n.input[2]].any()}
    biases = {n.name for n in quantizers if n.input[0] in constants and constants[n.input[0]].dtype == np.int32}
    products = {o for n in graph.node if n.op_type in ("MatMul", "Gemm") for o in n.output}
    behind = {n.name for n in quantizers if n.op_type == "QuantizeLinear" and n.input[0] in products}
    checked = check(static, "tensorrt")
    found = {rule.id: {f.node for f in checked.findings if f.rule == rule.id} for rule in RULES}
    assert shifted
    assert found["nonzero-zero-point"] == shifted
    assert biases
    assert found["int32-bias"] == biases
    assert found["quantized-product-output"]
    assert found["quantized-product-output"] < behind  # all but attention's own outputs
    assert found["residual-quantized"] == {f"blocks.{i}/Add{j}" for i in range(2) for j in ("", "_1")}
    assert checked.errors > 0


@needs_rtx
def test_tensorrt_rtx_refuses_it_indeed(static: Path) -> None:
    with pytest.raises(ErqError, match="cannot parse"):
        build_engine(static, package="tensorrt_rtx", compute_capabilities=("8.9",))


def test_what_onnx_runtime_quantizes_by_default_runs_there(static: Path) -> None:
    """No errors: it is its own. Warnings are the pairs that LayerNorms read and the class token in floating point."""
    checked = check(static, "onnx")
    assert checked.errors == 0
    assert {f.rule for f in checked.findings} == {"nothing-gained", "float-weight"}
    plain_session(static)
