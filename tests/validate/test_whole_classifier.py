"""A classifier's graph gives what its reference gives, ties apart; what all other levels pass over is told."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from msgspec import structs
from parity_fixtures import PATHS, Exported, add_constant, constant, damaged, exported, images
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.followed import CODES, Followed
from erq_export.contract.manifest import GraphManifest
from erq_export.validate.metrics.distance import ROUNDING
from erq_export.validate.parity.check import check_parity
from erq_export.validate.parity.first import differences
from erq_export.validate.parity.whole import classifier, codes
from erq_export.validate.parity.whole.codes import Watched

TARGETS = ("onnx", "tensorrt-rtx")
N, MANY = 4, 16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return exported(tmp_path_factory.mktemp("whole"), *TARGETS)


def followed(file: Exported, path: Path | None = None, n: int = N, manifest: GraphManifest | None = None) -> Followed:
    return classifier.follow_classifier(file.reference, path or file.path, manifest or file.manifest, images(n))


def test_outputs_are_equal_up_to_rounding_in_float32_and_float16(files: dict[str, Exported]) -> None:
    """In float16 many codes round otherwise, and none of them further from a tie than by a part of what is allowed."""
    found = {target: followed(file, n=MANY) for target, file in files.items()}
    for one in found.values():
        assert one.problems() == []
        assert one.as_deployed
        assert one.ties[CODES].n == MANY * (16 * (48 + 3 * 32 + 64) + 32)
    full, half = found.values()
    assert full.values["outputs"].limit == ROUNDING
    assert full.values["outputs"].largest < 1e-6
    assert full.ties[CODES].other < 10
    assert half.values["outputs"].limit == classifier.HALF_ROUNDING
    assert half.values["outputs"].largest < 1e-3
    assert 0 < half.ties[CODES].other < half.ties[CODES].n / 50
    assert 0 < half.ties[CODES].furthest < 0.25


def test_a_reference_that_does_not_follow_is_far_from_it(files: dict[str, Exported]) -> None:
    """The codes that round otherwise in float16 are what its outputs are off by: as it runs, more than twenty times as far."""
    file = files["tensorrt-rtx"]
    near = followed(file, n=MANY).values["outputs"].largest
    alone = structs.replace(file.manifest, sites=())
    assert followed(file, n=MANY, manifest=alone).values["outputs"].largest > 20 * near


def test_a_fault_that_the_first_image_does_not_show_is_told_by_this_level(
    files: dict[str, Exported], tmp_path: Path
) -> None:
    """What reaches the head is wrong where it is larger than in the first image. Between layers one image is looked at, and
    layers get their own inputs."""
    file = files["onnx"]
    (claim,) = [site for site in file.manifest.sites if site.path == "head"]
    seen: list[Tensor] = []
    hook = file.reference.get_submodule("head").register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    file.reference(images(MANY))
    hook.remove()
    first, *others = (float(x.max()) for x in seen[0])
    assert max(others) > 1.01 * first
    cut = (first + 9 * max(others)) / 10

    def damage(graph: ir.Graph) -> None:
        """x − 50 max(x − cut, 0)"""
        (value,) = [out for node in graph for out in node.outputs if out.name == claim.input]
        before, readers = value.producer(), [(use.node, use.idx) for use in value.uses()]
        assert before is not None
        for name, number in (("cut", cut), ("fifty", 50.0)):
            add_constant(graph, name, np.array(number, np.float32))
        over = ir.node("Relu", [ir.node("Sub", [value, graph.initializers["cut"]]).outputs[0]])
        much = ir.node("Mul", [over.outputs[0], graph.initializers["fifty"]])
        wrong = ir.node("Sub", [value, much.outputs[0]])
        beyond = over.inputs[0]
        assert beyond is not None
        first_node = beyond.producer()
        assert first_node is not None
        graph.insert_after(before, [first_node, over, much, wrong])
        value.name, wrong.outputs[0].name = "right", claim.input
        wrong.outputs[0].dtype, wrong.outputs[0].shape = value.dtype, value.shape
        for node, i in readers:
            node.replace_input_with(i, wrong.outputs[0])

    path = damaged(file.path, tmp_path / "cut.onnx", damage)
    found = check_parity(file.reference, path, file.manifest, file.layers, images(MANY), threads=1)
    problems = found.problems()
    assert problems
    assert all(p.startswith("ties apart, codes: the graph chooses otherwise") for p in problems), problems
    (difference,) = differences(found)
    assert (difference.block, difference.kind, difference.bound) == ("model", "ties apart", 1.0)
    assert difference.found is not None
    assert difference.found > 10


def test_wrong_outputs_and_zeros_are_told(files: dict[str, Exported], tmp_path: Path) -> None:
    file = files["onnx"]
    path = damaged(file.path, tmp_path / "bias.onnx", lambda g: constant(g, "head.bias", lambda b: b + 1e-3))
    assert any(p.startswith("ties apart, outputs: the graph's differ by") for p in followed(file, path).problems())
    path = damaged(file.path, tmp_path / "zeros.onnx", lambda g: constant(g, "head.weight_scale", lambda s: 0 * s))
    assert followed(file, path).problems()


def test_another_manifest_is_refused(files: dict[str, Exported]) -> None:
    file = files["onnx"]
    first, second, *rest = file.manifest.sites
    swapped = (structs.replace(first, path=second.path), structs.replace(second, path=first.path), *rest)
    nowhere = (structs.replace(first, codes="nowhere"), second, *rest)
    for sites, why in ((swapped, "has other codes there"), (nowhere, "it has no nowhere")):
        with pytest.raises(DataError, match=why):
            followed(file, manifest=structs.replace(file.manifest, sites=sites))
    assert {site.path for site in file.manifest.sites} == set(PATHS)


def test_a_graph_that_no_message_holds_is_watched_too(
    files: dict[str, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files["onnx"]
    small = followed(file)
    monkeypatch.setattr(codes, "LARGEST_MESSAGE", 0)
    monkeypatch.setattr(codes, "serialized", None)
    assert followed(file) == small


def test_it_is_said_where_a_graph_that_shows_its_codes_gives_other_outputs(
    files: dict[str, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is wrong then, and nothing proven of the graph as it is deployed."""
    monkeypatch.setattr(Watched, "runs_as_it_is", lambda *_: False)
    found = followed(files["onnx"])
    assert (found.problems(), found.as_deployed) == ([], False)
    assert "gives other outputs, of which this says nothing" in found.told


def test_what_a_file_runs_as_is_compared_to_the_bit(files: dict[str, Exported]) -> None:
    file = files["onnx"]
    model = ir.load(file.path)
    watched = Watched(file.path, model, file.manifest)
    feeds = {str(model.graph.inputs[0].name): images(2)}
    values = watched(feeds)
    assert watched.runs_as_it_is(feeds, values)
    name = str(ir.load(file.path).graph.outputs[0].name)
    assert not watched.runs_as_it_is(feeds, values | {name: torch.nextafter(values[name], torch.tensor(torch.inf))})
