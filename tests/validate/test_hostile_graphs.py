"""A graph that somebody changed, beside the manifest of the one before: refused in words, or measured and told apart."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from malformed import value_or_error
from torch import Tensor, nn

from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError, ErqError
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.targets import TARGETS
from erq_export.exporters.onnx.write import lowered, marker_graph, save
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.check import check_parity

N_BYTES, N_GRAPHS = 60, 90
Case = tuple[nn.Module, Path, GraphManifest, Bundle, Tensor]


@pytest.fixture(scope="module")
def case(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Case:
    graph, manifest = lowered(marker_graph(bundle), TARGETS["onnx"], None)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    save(graph, path)
    shape = bundle.identity.preprocess.input_size
    pixels = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return reference_model(bundle), path, manifest, bundle, pixels


def found(case: Case, data: bytes, folder: Path) -> str:
    """refused, problems or nothing; anything else fails the test."""
    reference, _, manifest, bundle, pixels = case
    (folder / "model.onnx").write_bytes(data)
    report = value_or_error(
        lambda: check_parity(reference, folder / "model.onnx", manifest, bundle.layers, pixels, draws=2)
    )
    if isinstance(report, ErqError):
        assert isinstance(report, DataError)
        assert report.fix
        assert len(report.problem) < 2000
        return "refused"
    return "problems" if report.problems() else "nothing"


def test_bytes_changed_anywhere(case: Case, tmp_path: Path) -> None:
    whole, ends = case[1].read_bytes(), Counter[str]()
    for i in range(N_BYTES):
        chance, data = random.Random(f"bytes {i}"), bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 20)]
                case _:
                    data[at:at] = chance.randbytes(chance.randrange(1, 8))
        ends[found(case, bytes(data), tmp_path)] += 1
    assert ends["refused"] > N_BYTES / 2, ends
    assert found(case, whole, tmp_path) == "nothing"


def drop_a_node(chance: random.Random, graph: onnx.GraphProto) -> None:
    graph.node.remove(chance.choice(list(graph.node)))


def random_values(chance: random.Random, graph: onnx.GraphProto) -> None:
    tensor = chance.choice([t for t in graph.initializer if len(t.raw_data) > 64])
    tensor.raw_data = chance.randbytes(len(tensor.raw_data))


def another_size(chance: random.Random, graph: onnx.GraphProto) -> None:
    dim = chance.choice(graph.input[0].type.tensor_type.shape.dim)
    dim.dim_value = chance.choice([7, 99])


def another_operator(chance: random.Random, graph: onnx.GraphProto) -> None:
    chance.choice(list(graph.node)).op_type = chance.choice(["Relu", "Identity", "MatMul", "Add", "Mul"])


def a_second_output(chance: random.Random, graph: onnx.GraphProto) -> None:
    name = chance.choice(list(graph.node)[:-1]).output[0]
    graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def a_second_input(chance: random.Random, graph: onnx.GraphProto) -> None:
    tensor = chance.choice(list(graph.initializer))
    graph.initializer.remove(tensor)
    graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def another_name(chance: random.Random, graph: onnx.GraphProto) -> None:
    chance.choice(list(graph.node)).output[0] += "_"


def tensors_mixed_up(chance: random.Random, graph: onnx.GraphProto) -> None:
    old, new = chance.sample(sorted(t.name for t in graph.initializer), 2)
    for node in graph.node:
        for j, name in enumerate(node.input):
            if name == old:
                node.input[j] = new


CHANGES: tuple[Callable[[random.Random, onnx.GraphProto], None], ...] = (
    *(drop_a_node, random_values, another_size, another_operator, a_second_output, a_second_input),
    *(another_name, tensors_mixed_up),
)


def test_a_graph_rebuilt_otherwise(case: Case, tmp_path: Path) -> None:
    """What can be measured is measured: a random weight is found, it is no bad input."""
    whole, ends = case[1].read_bytes(), Counter[tuple[str, str]]()
    for i in range(N_GRAPHS):
        change = CHANGES[i % len(CHANGES)]
        model = onnx.load_from_string(whole)
        change(random.Random(f"graph {i}"), model.graph)
        ends[change.__name__, found(case, model.SerializeToString(), tmp_path)] += 1
    assert {what for _, what in ends} >= {"refused", "problems"}, ends
    assert ends["random_values", "nothing"] == 0, ends
    for change in (another_size, a_second_output, a_second_input):
        assert {what for name, what in ends if name == change.__name__} == {"refused"}, ends
