"""One graph of the whole detector finds what the fake-quant detector finds, ties apart; every fault that is planted is told."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from msgspec import structs
from published_detector import framed
from toy_bundle import make_known, reference, toy_bundle

from erq_export.backends.onnxruntime import session
from erq_export.contract.bundle import Deployed
from erq_export.contract.errors import DataError
from erq_export.contract.followed import CODES, Followed
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.targets import named
from erq_export.exporters.onnx.parts import whole_graph
from erq_export.exporters.onnx.write import lowered, save
from erq_export.models.detectors.framing import Framed
from erq_export.models.detectors.whole import GIVES
from erq_export.validate.parity.whole.choices import Watched
from erq_export.validate.parity.whole.follow import follow

N = 20  # pictures
HEADS = 3
Fault = Callable[[ir.Graph], None]


@pytest.fixture(scope="module", autouse=True)
def _toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_known(patch)
        yield


@pytest.fixture(scope="module")
def bundle(_toy: None, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """The toy cascade, w4a4."""
    return toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def graph(bundle: Deployed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphManifest]:
    path = tmp_path_factory.mktemp("graph") / "detector.onnx"
    model, manifest = lowered(whole_graph(bundle), named("onnx"), None)
    save(model, path)
    assert {site.path for site in manifest.sites} == set(bundle.layers)
    return path, manifest


def pictures(n: int) -> list[Framed]:
    return [framed(seed=i + 1) for i in range(n)]


def followed(bundle: Deployed, path: Path, manifest: GraphManifest, n: int = 2) -> Followed:
    return follow(reference(bundle), path, manifest, pictures(n))


def feeds(one: Framed) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {"pixels": one.pixels.numpy(), "size": torch.tensor(one.size).numpy()}


def test_it_finds_what_the_fake_quant_detector_finds_on_20_pictures_ties_apart(
    bundle: Deployed, graph: tuple[Path, GraphManifest]
) -> None:
    """A detector of random weights: one code that rounds the other way moves everything behind it. Where the reference breaks its
    ties as the graph does, all that is found is the same, and every tie is one: the furthest is by rounding from it."""
    found = followed(bundle, *graph, n=N)
    assert found.problems() == []
    assert (found.n_pictures, found.n_found) == (N, N * 100)
    assert list(found.ties) == [CODES, "anchors", "proposals", "levels", "classes", "scores", "detections"]
    assert found.ties[CODES].n > 400_000_000
    assert 0 < found.ties[CODES].other < 1000
    for ties in found.ties.values():
        assert ties.other < ties.n / 100
        assert ties.furthest <= ties.limit / 4  # the limits are not close
    assert found.values["boxes"].largest < 1e-3  # pixels
    assert found.values["labels"].largest == 0
    assert max(found.values[kind].largest for kind in ("scores", "masks")) < 1e-6


def test_watching_changes_nothing(graph: tuple[Path, GraphManifest]) -> None:
    """What is compared is the graph as it runs without further outputs, to the bit."""
    watched, running = Watched(*graph, n_heads=HEADS), session(graph[0])
    for one in pictures(2):
        plain, found = running.run(list(GIVES), feeds(one)), watched(one).found
        assert all(np.array_equal(y, found[name].numpy()) for name, y in zip(GIVES, plain, strict=True))


def test_a_picture_without_anything_gives_nothing(
    bundle: Deployed, graph: tuple[Path, GraphManifest], tmp_path: Path
) -> None:
    """Everything is background: graph and reference give empty arrays."""
    layers, model = dict(bundle.layers), ir.load(graph[0])
    for i in range(HEADS):
        path = f"box.{i}.predictor.cls_score"
        layers[path] = replace(layers[path], bias=shifted(layers[path].bias))  # type: ignore[index]
        initializer(model.graph, f"{path}.bias", lambda array: array + 100 * (np.arange(len(array)) == 0))
    save(model, tmp_path / "detector.onnx")
    one = framed(seed=1)
    found = session(tmp_path / "detector.onnx").run(list(GIVES), feeds(one))
    assert [y.shape for y in found] == [(0, 4), (0,), (0,), (0, 28, 28)]
    blind = followed(replace(bundle, layers=layers), tmp_path / "detector.onnx", graph[1], n=1)
    assert (blind.problems(), blind.n_found, blind.ties["detections"].n) == ([], 0, 0)


def shifted(bias: torch.Tensor) -> torch.Tensor:
    return bias + 100 * (torch.arange(len(bias)) == 0)


def initializer(graph: ir.Graph, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:  # type: ignore[type-arg]
    value = graph.initializers[name]
    assert value.const_value is not None
    array = change(value.const_value.numpy())
    value.const_value = ir.tensor(array.astype(value.const_value.numpy().dtype), name=name)


def constant(operator: str, which: int, i: int, new: float) -> Fault:
    """The i-th input of the which-th operator of a kind."""

    def plant(graph: ir.Graph) -> None:
        node = [node for node in graph if node.op_type == operator][which]
        old = node.inputs[i]
        assert old is not None
        assert old.const_value is not None
        array = np.full_like(old.const_value.numpy(), new)
        value = ir.Value(name="planted", const_value=ir.tensor(array, name="planted"))
        graph.register_initializer(value)
        node.replace_input_with(i, value)

    return plant


def scaled(name: str, by: float) -> Fault:
    return lambda graph: initializer(graph, name, lambda array: array * (1 + by))


def one_more(name: str) -> Fault:
    """Every integer of a weight."""
    return lambda graph: initializer(graph, name, lambda array: array + 1)


def negated(graph: ir.Graph) -> None:
    """The worst class instead of the best."""
    node = next(node for node in graph if node.op_type == "ArgMax")
    negative = ir.node("Neg", [node.inputs[0]])
    graph.insert_before(node, negative)
    node.replace_input_with(0, negative.outputs[0])


def smallest(graph: ir.Graph) -> None:
    """The worst anchors of the first level."""
    node = next(node for node in graph if node.op_type == "TopK")
    node.attributes["largest"] = ir.AttrInt64("largest", 0)


def sampled(graph: ir.Graph) -> None:
    """torchvision's own two samples a side, not as many as the box is large."""
    for node in graph:
        if node.op_type == "RoiAlign":
            node.attributes["sampling_ratio"] = ir.AttrInt64("sampling_ratio", 2)


def coarser(graph: ir.Graph) -> None:
    """Boxes are pooled from the wrong map: levels begin at 64 pixels, not at 56."""
    roots = {id(node.outputs[0]) for node in graph if node.op_type == "Sqrt"}
    divided = [node for node in graph if node.op_type == "Div" and id(node.inputs[0]) in roots]
    assert divided
    initializer(graph, str(divided[0].inputs[1].name), lambda array: array * 64 / 56)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(scaled("box.1.head.0.0.act_scale_q", 1e-3), "codes", id="scale"),
        pytest.param(one_more("body.layers.0.blocks.0.attn.qkv.weight_q"), "codes", id="weights"),
        pytest.param(one_more("mask.2.predictor.mask_fcn_logits.weight_q"), "masks", id="weights of a mask"),
        pytest.param(constant("NonMaxSuppression", 0, 3, 0.69), "proposals", id="overlap of proposals"),
        pytest.param(constant("NonMaxSuppression", 1, 3, 0.49), "detections", id="overlap of detections"),
        pytest.param(constant("Greater", 0, 1, 0.06), "scores", id="least score"),
        pytest.param(smallest, "anchors", id="worst anchors"),
        pytest.param(negated, "classes", id="worst class"),
        pytest.param(sampled, "codes", id="samples of a box"),
        pytest.param(coarser, "levels", id="map of a box"),
    ],
)
def test_every_planted_fault_is_told(
    bundle: Deployed, graph: tuple[Path, GraphManifest], tmp_path: Path, fault: Fault, kind: str
) -> None:
    """Faults that average precision, or the parts by themselves, would not show."""
    model = ir.load(graph[0])
    fault(model.graph)
    ir.save(model, tmp_path / "detector.onnx")
    problems = followed(bundle, tmp_path / "detector.onnx", graph[1]).problems()
    assert problems
    assert problems[0].startswith(f"the whole detector's {kind}: "), problems


def test_a_graph_that_looks_at_other_many_anchors_is_told(
    bundle: Deployed, graph: tuple[Path, GraphManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no following it then, and what follows is passed over."""
    monkeypatch.setattr("erq_export.validate.parity.whole.follow.BEST", 999)
    found = followed(bundle, *graph)
    assert found.problems()[0].startswith("the whole detector's choices: not finite from")
    assert "does not find what the reference finds" in found.told


def test_a_file_of_another_export_is_refused(graph: tuple[Path, GraphManifest], tmp_path: Path) -> None:
    path, manifest = graph
    with pytest.raises(DataError, match="it has 2 ArgMax, 0 choose"):
        Watched(path, manifest, n_heads=1)
    site, *sites = manifest.sites
    other = structs.replace(manifest, sites=(structs.replace(site, codes="nowhere"), *sites))
    with pytest.raises(DataError, match="it has no nowhere"):
        Watched(path, other, n_heads=HEADS)
