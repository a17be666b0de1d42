"""The ONNX Runtime benchmark: kernels are counted where they belong, and ratios are paired by round."""

import importlib
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("onnxruntime_speed")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """One product with a weight, then one of two activations."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("MatMul", ["pixels", "weight"], ["y"], name="linear"),
        helper.make_node("MatMul", ["y", "pixels"], ["z"], name="attention"),
    ]
    x, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3, 4, 4]) for n in ("pixels", "z"))
    made = helper.make_model(helper.make_graph(nodes, "g", [x], [z], [weight]), ir_version=10)
    made.opset_import[0].version = 21
    onnx.save(made, tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


def test_products_with_weights_are_told_from_those_of_attention(module: ModuleType, graph: Path) -> None:
    """On ONNX Runtime's own profile: a packed weight is not among the shapes that it lists."""
    found = module.profile(graph, torch.randn(1, 3, 4, 4), threads=1)
    assert set(found["by_group_ms"]) == {"float GEMM", "float attention"}
    assert set(found["by_operator_ms"]) == {"MatMul"}
    assert module.quantize_static.attention_products(graph) == ["attention"]


def test_ratios_are_paired_by_round(module: ModuleType) -> None:
    """A machine that becomes ten times slower moves the medians, not the ratio."""
    slowing = np.array([1.0, 1.0, 10.0, 10.0, 10.0])
    t = np.stack([2 * slowing, slowing], axis=1)  # (rounds, graphs)
    found = module.summary(t, 1)
    assert (found["p10"], found["ratio"], found["p90"]) == (2, 2, 2)
    assert (found["median_ms"], found["min_ms"]) == (1e4, 1e3)


def test_each_of_ours_is_held_beside_the_same_products_in_integers(module: ModuleType) -> None:
    names = ["float32", "quantize_static", "quantize_static+attention", "w8a8", "w4a4+attention"]
    found = module.ours_to_theirs(names, np.array([[9.0, 4.0, 3.0, 2.0, 1.0]]))
    assert {name: ratio["ratio"] for name, ratio in found.items()} == {"w8a8": 2, "w4a4+attention": 3}
    assert module.ours_to_theirs(["float32", "w8a8"], np.ones((1, 2))) == {}  # nothing of theirs to compare with


@pytest.mark.parametrize(
    ("to_theirs", "says"), [((0.8, 0.9, 0.99), "slower in 1 lines"), ((0.8, 0.9, 1.1), "nowhere slower")]
)
def test_slower_is_said_only_beyond_the_spread(
    module: ModuleType, tmp_path: Path, to_theirs: tuple[float, float, float], says: str
) -> None:
    beside = {"theirs": "quantize_static"} | dict(zip(("p10", "ratio", "p90"), to_theirs, strict=True))
    wall = {
        name: {"ratio": ratio, "p10": 1, "p90": 2, "median_ms": 9} for name, ratio in (("float32", 1), ("ours", 1.9))
    }
    run = {"threads": 1, "batch": 1, "wall": wall, "ours_to_theirs": {"ours": beside}}
    settings = {"batches": [1], "speed_at_batches": {}, "chosen": {}}
    model = {"model": "vit_s", "runs": [run], "profiles": {}, "quantize_static": settings}
    machine = module.page.machine("onnxruntime-gpu", "torch", "timm") | {"cores": 2}
    module.sheet.write(
        Namespace(out=tmp_path), "onnxruntime", {"machine": machine, "rounds": 1, "seconds": 0.0, "models": [model]}
    )
    said = (tmp_path / "onnxruntime.md").read_text(encoding="utf-8")
    assert says in said
    assert "1.90 to 1.90 × float32 (wanted at vit_s: 2.2)" in said
