"""A graph above protobuf's limit lies in two files; everything that reads graphs reads both."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from tiny_vit import TINY_LAYERS, random_images

from erq_export.backends.tensorrt import available, build_engine
from erq_export.contract.bundle import Bundle
from erq_export.contract.engine import EngineRecord
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.manifest import MANIFEST, GraphManifest
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.records import encode, read
from erq_export.contract.targets import TARGETS
from erq_export.exporters.onnx import write
from erq_export.exporters.onnx.write import lowered, marker_graph, save
from erq_export.exporters.tensorrt import build as engine
from erq_export.exporters.tensorrt.plan import compiled, summarize
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.check import check_parity
from erq_export.validate.runners import OnnxRuntimeRunner

NAMES = ("onnx", "tensorrt-rtx")


@pytest.fixture(scope="module")
def out(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> OutputFolder:
    """OUT/<target> as the pipeline writes it, once with the real limit (`one`) and once with a tiny one (`two`)."""
    folder, markers = tmp_path_factory.mktemp("external"), marker_graph(bundle)
    for name, limit in (("one", write.LARGEST_FILE), ("two", 1000)):
        with pytest.MonkeyPatch.context() as patch, OutputFolder(folder / name).begin() as writing:
            patch.setattr(write, "LARGEST_FILE", limit)
            for target in NAMES:
                graph, manifest = lowered(markers, TARGETS[target], None)

                def fill(staging: Path, graph: ir.Model = graph, manifest: GraphManifest = manifest) -> None:
                    save(graph, staging / "model.onnx")
                    (staging / MANIFEST).write_bytes(encode(manifest))

                writing.place(target, fill)
    return OutputFolder(folder)


def manifest_of(out: OutputFolder, target: str) -> GraphManifest:
    return read(GraphManifest, out.target(target) / MANIFEST)


@pytest.mark.parametrize("target", NAMES)
def test_the_tensors_lie_beside_the_graph_and_the_folder_is_whole(out: OutputFolder, target: str) -> None:
    one, two = (OutputFolder(out.path / name) for name in ("one", "two"))
    assert sorted(p.name for p in one.target(target).iterdir()) == ["manifest.json", "model.onnx"]
    assert sorted(p.name for p in two.target(target).iterdir()) == ["manifest.json", "model.onnx", "model.onnx.data"]
    assert manifest_of(one, target) == manifest_of(two, target)
    onnx.checker.check_model(str(two.graph(target)), full_check=True)
    locations = {
        entry.value
        for tensor in onnx.load(two.graph(target), load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {"model.onnx.data"}  # beside it, wherever the folder is moved
    weights = manifest_of(two, target).bytes.int8
    assert two.graph(target).stat().st_size < one.graph(target).stat().st_size - weights / 2


@pytest.mark.parametrize("target", NAMES)
def test_both_give_the_same_logits_and_pass_parity(out: OutputFolder, bundle: Bundle, target: str) -> None:
    one, two = (OutputFolder(out.path / name) for name in ("one", "two"))
    pixels = random_images(2, seed=4).pixels
    assert torch.equal(*(OnnxRuntimeRunner(o.graph(target), threads=1).logits(pixels) for o in (one, two)))
    manifest = manifest_of(two, target)
    report = check_parity(reference_model(bundle), two.graph(target), manifest, bundle.layers, pixels, draws=1)
    assert report.problems() == []
    assert report.weights.n_layers == len(TINY_LAYERS)


@pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_an_engine_is_built_from_both(out: OutputFolder, tmp_path: Path) -> None:
    two = OutputFolder(out.path / "two")
    record = engine.build(
        two.graph("tensorrt-rtx"),
        manifest_of(two, "tensorrt-rtx"),
        tmp_path,
        package="tensorrt_rtx",
        asked=EngineSpec(batch=(1, 2, 4), capability=("8.9",)),
        gpu=None,
        on_progress=None,
    )
    assert record.problems == ()
    assert read(EngineRecord, tmp_path / "engine.json") == record
    one = build_engine(
        OutputFolder(out.path / "one").graph("tensorrt-rtx"),
        package="tensorrt_rtx",
        compute_capabilities=("8.9",),
        batch=(1, 2, 4),
    )
    assert summarize(compiled(one)).gemm == record.plan.gemm == {"int8": len(TINY_LAYERS)}
    assert abs(len(one.blob) - record.bytes) < 4096  # the weights are in it
