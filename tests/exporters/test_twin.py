"""The FP16 twin: the float model's own products in float16, as near to the float model as float16 is."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from full_size import HALF_EPSILON
from tiny_swin import tiny_swin
from tiny_vit import random_images, tiny_vit

from erq_export.backends.tensorrt import available
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.targets import TARGETS
from erq_export.exporters.onnx.twin import half_graph
from erq_export.exporters.onnx.write import save
from erq_export.exporters.tensorrt.build import build
from erq_export.models.loading import Loaded
from erq_export.validate.runners import OnnxRuntimeRunner, TorchRunner


@pytest.fixture(scope="module", params=[tiny_vit, tiny_swin], ids=["vit", "swin"])
def twin(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Loaded, Path, GraphManifest]:
    loaded: Loaded = request.param()
    graph, manifest = half_graph(loaded.model, loaded.identity.preprocess.input_size, TARGETS["tensorrt-rtx"])
    path = tmp_path_factory.mktemp("twin") / "model.onnx"
    save(graph, path)
    return loaded, path, manifest


def test_its_logits_are_the_float_models_within_float16(twin: tuple[Loaded, Path, GraphManifest]) -> None:
    """A handful of blocks, each of some ten roundings that mostly cancel: a few dozen times the error of one, and not none."""
    loaded, path, _ = twin
    pixels = random_images(8, size=loaded.identity.preprocess.input_size[1]).pixels
    exact = TorchRunner(loaded.model, torch.device("cpu")).logits(pixels)
    error = float((OnnxRuntimeRunner(path).logits(pixels) - exact).norm() / exact.norm())
    assert HALF_EPSILON / 10 < error < 20 * HALF_EPSILON


def test_every_product_is_in_float16_and_every_layernorm_in_float32(twin: tuple[Loaded, Path, GraphManifest]) -> None:
    loaded, path, manifest = twin
    graph = ir.load(path).graph
    products = [node for node in graph if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert {value.dtype for node in products for value in node.inputs if value} == {ir.DataType.FLOAT16}
    norms = [node for node in graph if node.op_type == "LayerNormalization"]
    assert norms
    assert {value.dtype for node in norms for value in node.inputs if value} == {ir.DataType.FLOAT}
    assert not [node for node in graph if "Quantize" in node.op_type]
    assert {value.dtype for value in (*graph.inputs, *graph.outputs)} == {ir.DataType.FLOAT}
    n_layers = sum(len(stage.sites) for stage in loaded.stages)
    attentions = manifest.claims.attention["float16"]
    assert manifest.claims.gemm == {"float16": n_layers}
    assert len(products) == n_layers + 2 * attentions
    assert (manifest.sites, manifest.origin) == ((), None)


@pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_its_engine_multiplies_no_integers(twin: tuple[Loaded, Path, GraphManifest], tmp_path: Path) -> None:
    _, path, manifest = twin
    asked = EngineSpec(batch=(1, 2, 4), capability=("8.9",))
    record = build(path, manifest, tmp_path, package="tensorrt_rtx", asked=asked, gpu=None, on_progress=None)
    assert record.problems == ()
    assert record.plan.gemm == manifest.claims.gemm
    assert record.bundle_sha256 is None
