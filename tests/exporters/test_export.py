"""What is written for a target is legal there and carries the bundle's integers unchanged."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_vit import TINY_LAYERS, calibrated_bundle, random_images, tiny_spec, tiny_vit

from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import EngineError
from erq_export.contract.targets import TARGETS
from erq_export.exporters.onnx.write import lowered, marker_graph, rebound, save
from erq_export.validate.runners import OnnxRuntimeRunner

GRAPHS = ("onnx", "tensorrt")
F16, F32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def markers(bundle: Bundle) -> Any:
    return marker_graph(bundle)


@pytest.fixture(scope="module")
def files(markers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    for target in GRAPHS:
        save(lowered(markers, TARGETS[target], {"bits": "w4a4"})[0], folder / f"{target}.onnx")
    return {target: folder / f"{target}.onnx" for target in GRAPHS}


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("target", GRAPHS)
def test_every_quantized_weight_is_one_initializer_that_equals_the_bundles_integers(
    files: dict[str, Path], bundle: Bundle, target: str
) -> None:
    arrays = initializers(files[target])
    matrices = {name for name, a in arrays.items() if a.dtype == np.int8 and a.ndim == 2}
    assert matrices == {f"{path}.weight_q" for path in TINY_LAYERS}
    for path, layer in bundle.layers.items():
        assert np.array_equal(arrays[f"{path}.weight_q"], layer.weight_q.numpy().T)


@pytest.mark.parametrize("target", GRAPHS)
def test_no_float_tensor_is_as_large_as_a_quantized_weight(files: dict[str, Path], bundle: Bundle, target: str) -> None:
    arrays = initializers(files[target])
    floats = [a for a in arrays.values() if a.dtype.kind == "f"]
    smallest = min(layer.weight_q.numel() for layer in bundle.layers.values() if layer.weight_q.shape[0] > 5)
    assert max(a.size for a in floats) < smallest  # position embeddings and LayerNorms, nothing else


@pytest.mark.parametrize("target", GRAPHS)
def test_scales_times_integers_are_the_references_weights(files: dict[str, Path], bundle: Bundle, target: str) -> None:
    """Exactly: per channel in float32, or a power of two times a ratio that float16 holds."""
    arrays = initializers(files[target])
    for path, layer in bundle.layers.items():
        scale = arrays[f"{path}.weight_scale"].astype(np.float32)
        ratio = arrays.get(f"{path}.weight_ratio", np.float32(1)).astype(np.float32)
        weight = arrays[f"{path}.weight_q"].astype(np.float32) * (scale * ratio)
        assert np.array_equal(weight.T, layer.weight.numpy())


def test_the_same_bundle_gives_the_same_bytes_in_any_order_of_targets(
    files: dict[str, Path], bundle: Bundle, tmp_path: Path
) -> None:
    again = marker_graph(bundle)
    for target in reversed(GRAPHS):
        path = tmp_path / f"{target}.onnx"
        save(lowered(again, TARGETS[target], {"bits": "w4a4"})[0], path)
        assert path.read_bytes() == files[target].read_bytes()


def test_a_rebound_trace_is_a_trace(markers: Any, tmp_path: Path) -> None:
    spec = tiny_spec("w3a5", ("onnx", "tensorrt-rtx"), method="rtn")
    other = calibrated_bundle(tiny_vit(), random_images(seed=3), spec)
    again = rebound(markers, other)
    assert again is not None
    for target in GRAPHS:
        paths = tmp_path / "rebound.onnx", tmp_path / "traced.onnx"
        for graph, path in zip((again, marker_graph(other)), paths, strict=True):
            save(lowered(graph, TARGETS[target], None)[0], path)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_bundle_with_a_tensor_that_has_no_place_is_traced_again(markers: Any, bundle: Bundle) -> None:
    more = dataclasses.replace(bundle, leftovers=bundle.leftovers | {"norm.extra": torch.zeros(1)})
    assert rebound(markers, more) is None


@pytest.mark.parametrize("target", GRAPHS)
def test_the_batch_is_dynamic(files: dict[str, Path], target: str) -> None:
    """Five images at once and one by one: equal to float32 rounding, or to one step of float16 and what it tips over."""
    runner, pixels = OnnxRuntimeRunner(files[target]), random_images(5, seed=9).pixels
    one_by_one = torch.cat([runner.logits(p[None]) for p in pixels])
    tolerance = 1e-5 if target == "onnx" else 2e-2
    assert torch.allclose(runner.logits(pixels), one_by_one, rtol=0, atol=tolerance)


@pytest.mark.parametrize("target", GRAPHS)
def test_the_file_explains_itself_and_tells_nothing_of_this_machine(files: dict[str, Path], target: str) -> None:
    model = onnx.load(files[target])
    assert {p.key: p.value for p in model.metadata_props} == {"erq.bits": "w4a4"}
    assert model.opset_import[0].version >= 21
    assert [o.domain for o in model.opset_import] == [""]
    assert b"site-packages" not in files[target].read_bytes()
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    for path in TINY_LAYERS:
        assert {f"{path}/{part}" for part in ("Quantize", "Dequantize", "MatMul", "Add")} <= set(names)


def test_tensorrt_multiplies_in_float16_and_normalises_in_float32(files: dict[str, Path]) -> None:
    inferred = onnx.shape_inference.infer_shapes(onnx.load(files["tensorrt"]), strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    types |= {t.name: t.data_type for t in inferred.initializer}
    for node in inferred.node:
        seen = {types[name] for name in node.input if types.get(name) in (F16, F32)}
        if node.op_type in ("MatMul", "Softmax", "Gelu", "Add", "Mul"):
            assert seen == {F16}, node.name
        if node.op_type == "LayerNormalization":
            assert seen == {F32}, node.name
        if node.op_type == "QuantizeLinear":  # the pixels and behind a LayerNorm, it divides in float32
            behind_norm = node.name.startswith(("patch", "head")) or ".qkv" in node.name or ".fc1" in node.name
            assert seen == {F32 if behind_norm else F16}, node.name
    assert types["pixels"] == types["logits"] == F32


def test_int8_zero_points_are_zero_on_tensorrt_and_hold_the_offset_on_onnx(
    files: dict[str, Path], bundle: Bundle
) -> None:
    for target, dtype in (("tensorrt", np.int8), ("onnx", np.uint8)):
        arrays = initializers(files[target])
        for path, layer in bundle.layers.items():
            zero = arrays[f"{path}.act_zero_point"]
            assert zero.dtype == dtype
            assert int(zero) == (0 if target == "tensorrt" else -int(layer.act.qmin))
            assert not arrays[f"{path}.weight_zero_point"].any()


def test_what_was_calibrated_for_onnx_alone_is_refused_for_tensorrt(tmp_path: Path) -> None:
    """Its 8-bit codes have a zero point of their own, its scales are not float16's."""
    other = calibrated_bundle(tiny_vit(), random_images(), tiny_spec("w8a8", ("onnx",)))
    graph = marker_graph(other)
    save(lowered(graph, TARGETS["onnx"], None)[0], tmp_path / "fine.onnx")
    with pytest.raises(EngineError, match="tensorrt") as caught:
        lowered(graph, TARGETS["tensorrt"], None)
    assert "--to tensorrt" in caught.value.fix
