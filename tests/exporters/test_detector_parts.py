"""A detector's parts as graphs: integers in ONNX Runtime and in TensorRT-RTX, and what the fake-quant parts give."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from published_detector import framed
from torch import Tensor
from toy_bundle import reference

from erq_export.backends.onnxruntime import session
from erq_export.backends.tensorrt import available
from erq_export.contract.bundle import Deployed
from erq_export.contract.detection import PartParity
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.targets import named
from erq_export.exporters.lint.check import check
from erq_export.exporters.onnx.parts import Part, PartShape, part_graphs, part_shapes, parts_of
from erq_export.exporters.onnx.trace import INPUT
from erq_export.exporters.onnx.write import lowered, save
from erq_export.exporters.tensorrt.build import build
from erq_export.validate.parity.part import check_part


@pytest.fixture(scope="module")
def graphs(toy_cascade: Deployed) -> dict[str, ir.Model]:
    return part_graphs(toy_cascade)


def example(shape: PartShape, n: int) -> Tensor:
    """Pictures for the body, noise behind a ReLU for a head."""
    if shape.takes == INPUT:
        return torch.cat([framed(seed=i + 1).pixels for i in range(n)])
    return torch.randn(n, *shape.input_size, generator=torch.Generator().manual_seed(n)).relu()


def in_onnxruntime(path: Path, shape: PartShape, x: Tensor) -> list[Tensor]:
    running = session(path)
    return [torch.from_numpy(y) for y in running.run(list(shape.gives), {shape.takes: x.numpy()})]


def checked(toy_cascade: Deployed, graph: ir.Model, name: str, folder: Path, n: int = 1) -> PartParity:
    """One part's graph for ONNX Runtime beside the reference's part, on n rows of a batch."""
    detector, path = reference(toy_cascade), folder / f"{name}.onnx"
    shape = part_shapes(detector)[name]
    model, manifest = lowered(graph, named("onnx"), None)
    save(model, path)
    layers = {site.path: toy_cascade.layers[site.path] for site in manifest.sites}
    part, x = parts_of(detector)[name], example(shape, n)
    return check_part(part, path, manifest, layers, x, takes=shape.takes, gives=shape.gives)


def test_every_part_is_that_of_the_fake_quant_detector(
    toy_cascade: Deployed, graphs: dict[str, ir.Model], tmp_path: Path
) -> None:
    """Layer by layer on equal inputs, and between the layers. Of what leaves a part of random weights nothing can be asked: one
    code that rounds the other way moves everything behind it."""
    detector = reference(toy_cascade)
    assert list(graphs) == ["body", "box.0", "box.1", "box.2", "mask.0", "mask.1", "mask.2"]
    for name, part in parts_of(detector).items():
        for n in (1, 3):
            found = checked(toy_cascade, graphs[name], name, tmp_path, n)
            assert found.problems() == [], name
            assert (found.codes.mismatches, found.sums.mismatches) == (0, 0)
            assert found.sums.n > 0
        shape = part_shapes(detector)[name]
        x = example(shape, 3)
        for y, y0 in zip(in_onnxruntime(tmp_path / f"{name}.onnx", shape, x), called(part, x), strict=True):
            assert y.shape == y0.shape, name


@torch.no_grad()
def called(part: Part, x: Tensor) -> list[Tensor]:
    out = part(x)
    return [out] if isinstance(out, Tensor) else list(out)


@pytest.mark.parametrize("target", ["onnx", "tensorrt-rtx"])
def test_every_layer_of_every_part_is_claimed_and_the_graphs_are_legal(
    toy_cascade: Deployed, graphs: dict[str, ir.Model], tmp_path: Path, target: str
) -> None:
    claimed = set()
    for name, graph in graphs.items():
        model, manifest = lowered(graph, named(target), None)
        save(model, tmp_path / f"{name}.onnx")
        found = check(tmp_path / f"{name}.onnx", target)
        assert not found.errors, (name, found.as_text())
        claimed |= {site.path for site in manifest.sites}
        assert all(site.path.startswith(f"{name}.") for site in manifest.sites)
    assert claimed == set(toy_cascade.layers)


@pytest.mark.parametrize(
    ("part", "tensor", "by", "says"),
    [
        ("box.0", "box.0.predictor.cls_score.weight_q", 1, "box.0.predictor.cls_score: 1 weight integers in the file"),
        ("mask.0", "mask.0.head.0.0.weight_q", 1, "mask.0.head.0.0: 1 weight integers in the file"),
        ("mask.0", "mask.0.head.0.0.sum_scale", 0.01, "mask.0.head.0.0: same input, output"),
        ("body", "body.rpn.conv.0.0.act_scale_q", 0.1, "body.rpn.conv.0.0: "),
    ],
)
def test_a_fault_in_a_part_is_named(
    toy_cascade: Deployed, graphs: dict[str, ir.Model], tmp_path: Path, part: str, tensor: str, by: float, says: str
) -> None:
    detector, path = reference(toy_cascade), tmp_path / "part.onnx"
    shape, x = part_shapes(detector)[part], example(part_shapes(detector)[part], 1)
    model, manifest = lowered(graphs[part], named("onnx"), None)
    layers = {site.path: toy_cascade.layers[site.path] for site in manifest.sites}

    def found() -> PartParity:
        save(model, path)
        return check_part(parts_of(detector)[part], path, manifest, layers, x, takes=shape.takes, gives=shape.gives)

    whole = found()
    assert whole.problems() == []
    assert len(whole.layers) == len(manifest.sites)
    assert ("map.4" in whole.between.relative_l2) == (part == "body")  # pooled from the map below it
    value = model.graph.initializers[tensor]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array.reshape(-1)[0] += array.dtype.type(by)
    value.const_value = ir.tensor(array, name=tensor)
    assert any(problem.startswith(says) for problem in found().problems())


@pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("name", ["body", "box.0", "mask.0"])
def test_tensorrt_rtx_runs_every_claimed_layer_in_integers(
    graphs: dict[str, ir.Model], tmp_path: Path, name: str
) -> None:
    model, manifest = lowered(graphs[name], named("tensorrt-rtx"), None)
    save(model, tmp_path / "model.onnx")
    asked = EngineSpec(batch=(1, 1, 1) if name == "body" else (1, 100, 100), capability=("8.9",))
    record = build(
        tmp_path / "model.onnx",
        manifest,
        tmp_path,
        package="tensorrt_rtx",
        asked=asked,
        gpu=None,
        on_progress=None,
    )
    assert record.problems == (), record.problems
    assert set(record.precision.values()) == {"int8"}
