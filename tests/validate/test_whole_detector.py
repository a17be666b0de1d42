"""One graph of the whole detector finds what the fake-quant detector finds, ties apart; every fault that is planted is told."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from msgspec import structs
from parity_fixtures import constant
from parity_plants import plus, times
from published_detector import framed
from torchvision.ops import batched_nms
from toy_bundle import reference
from whole_faults import (
    Fault,
    coarser,
    negated,
    of_output,
    operand,
    reversed_below,
    sampled,
    smallest,
)

from erq_export.backends.onnxruntime import session
from erq_export.contract.bundle import Deployed
from erq_export.contract.errors import DataError
from erq_export.contract.followed import CODES, Followed
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.targets import named
from erq_export.exporters.onnx.parts import whole_graph
from erq_export.exporters.onnx.write import lowered, save
from erq_export.models.detectors import pooling
from erq_export.models.detectors.detector import LEAST_SCORE
from erq_export.models.detectors.framing import Framed
from erq_export.models.detectors.proposals import objectness_of
from erq_export.models.detectors.whole import GIVES
from erq_export.validate.parity.whole.choices import Choices, WatchedDetector
from erq_export.validate.parity.whole.detector import Picture, follow_detector
from erq_export.validate.parity.whole.ledger import Ledger

N = 20  # pictures
HEADS = 3


@pytest.fixture(scope="module")
def graph(toy_cascade: Deployed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphManifest]:
    path = tmp_path_factory.mktemp("graph") / "detector.onnx"
    model, manifest = lowered(whole_graph(toy_cascade), named("onnx"), None)
    save(model, path)
    assert {site.path for site in manifest.sites} == set(toy_cascade.layers)
    return path, manifest


def pictures(n: int) -> list[Framed]:
    return [framed(seed=i + 1) for i in range(n)]


def followed(toy_cascade: Deployed, path: Path, manifest: GraphManifest, n: int = 2) -> Followed:
    return follow_detector(reference(toy_cascade), path, manifest, pictures(n))


def feeds(one: Framed) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {"pixels": one.pixels.numpy(), "size": torch.tensor(one.size).numpy()}


def test_it_finds_what_the_fake_quant_detector_finds_on_20_pictures_ties_apart(
    toy_cascade: Deployed, graph: tuple[Path, GraphManifest]
) -> None:
    """A detector of random weights: one code that rounds the other way moves everything behind it. Where the reference breaks its
    ties as the graph does, all that is found is the same, and every tie is one: the furthest is by rounding from it."""
    found = followed(toy_cascade, *graph, n=N)
    assert found.problems() == []
    assert (found.n_images, found.n_found) == (N, N * 100)
    assert list(found.ties) == [CODES, "anchors", "proposals", "levels", "classes", "threshold", "detections"]
    assert found.ties[CODES].n > 400_000_000
    assert 0 < found.ties[CODES].other < 1000
    for ties in found.ties.values():
        assert ties.other < ties.n / 100
        assert ties.furthest <= 0.25  # of what rounding explains: 0.02 were seen
    assert found.values["boxes"].largest < 1e-3  # pixels
    assert found.values["labels"].largest == 0
    assert max(found.values[kind].largest for kind in ("scores", "masks")) < 1e-6


def test_watching_changes_nothing(graph: tuple[Path, GraphManifest]) -> None:
    """What is compared is the graph as it runs without further outputs, to the bit."""
    watched, running = WatchedDetector(*graph, n_heads=HEADS), session(graph[0])
    for one in pictures(2):
        plain, found = running.run(list(GIVES), feeds(one)), watched(one).values
        assert all(np.array_equal(y, found[name].numpy()) for name, y in zip(GIVES, plain, strict=True))


def test_a_picture_without_anything_gives_nothing(
    toy_cascade: Deployed, graph: tuple[Path, GraphManifest], tmp_path: Path
) -> None:
    """Everything is background: graph and reference give empty arrays."""
    layers, model = dict(toy_cascade.layers), ir.load(graph[0])
    for i in range(HEADS):
        path = f"box.{i}.predictor.cls_score"
        layers[path] = replace(layers[path], bias=shifted(layers[path].bias))  # type: ignore[index]
        constant(model.graph, f"{path}.bias", lambda array: array + 100 * (np.arange(len(array)) == 0))
    save(model, tmp_path / "detector.onnx")
    one = framed(seed=1)
    found = session(tmp_path / "detector.onnx").run(list(GIVES), feeds(one))
    assert [y.shape for y in found] == [(0, 4), (0,), (0,), (0, 28, 28)]
    blind = followed(replace(toy_cascade, layers=layers), tmp_path / "detector.onnx", graph[1], n=1)
    assert (blind.problems(), blind.n_found, blind.ties["detections"].n) == ([], 0, 0)


def shifted(bias: torch.Tensor) -> torch.Tensor:
    return bias + 100 * (torch.arange(len(bias)) == 0)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(times("box.1.head.0.0.act_scale_q", 1.001), "codes", id="scale"),
        pytest.param(plus("body.layers.0.blocks.0.attn.qkv.weight_q", 1), "codes", id="weights"),
        pytest.param(plus("mask.2.predictor.mask_fcn_logits.weight_q", 1), "masks", id="weights of a mask"),
        pytest.param(operand("NonMaxSuppression", 0, 3, 0.69), "proposals", id="overlap of proposals"),
        pytest.param(operand("NonMaxSuppression", 1, 3, 0.49), "detections", id="overlap of detections"),
        pytest.param(operand("Greater", 0, 1, 0.06), "threshold", id="least score"),
        pytest.param(reversed_below, "proposals", id="order of the worst"),
        pytest.param(smallest, "anchors", id="worst anchors"),
        pytest.param(negated, "classes", id="worst class"),
        pytest.param(sampled, "codes", id="samples of a box"),
        pytest.param(coarser, "levels", id="map of a box"),
        pytest.param(of_output("labels", "Add", 1), "labels", id="labels"),
        pytest.param(of_output("boxes", "Mul", 1.001), "boxes", id="boxes"),
        pytest.param(of_output("scores", "Mul", 0.999), "scores", id="scores"),
        pytest.param(of_output("masks", "Sub", 0.001), "masks", id="masks"),
    ],
)
def test_every_planted_fault_is_told(
    toy_cascade: Deployed, graph: tuple[Path, GraphManifest], tmp_path: Path, fault: Fault, kind: str
) -> None:
    """Faults that average precision, or the parts by themselves, would not show."""
    model = ir.load(graph[0])
    fault(model.graph)
    ir.save(model, tmp_path / "detector.onnx")
    problems = followed(toy_cascade, tmp_path / "detector.onnx", graph[1]).problems()
    assert problems
    assert problems[0].startswith(f"ties apart, {kind}: "), problems


def test_the_reference_that_follows_itself_is_the_detector(
    toy_cascade: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own choices `Picture` goes the way of `Detector.forward`, to the bit: no choice is another, no value differs."""
    detector, one, stayed = reference(toy_cascade), framed(seed=3), list[torch.Tensor]()
    given = list[tuple[torch.Tensor, int]]()
    logits = list[torch.Tensor]()

    def suppressed(*asked: object) -> torch.Tensor:
        stayed.append(batched_nms(*asked))  # type: ignore[arg-type]
        return stayed[-1]

    def seen(maps: Sequence[torch.Tensor], boxes: torch.Tensor, side: int) -> torch.Tensor:
        given.append((boxes, side))
        return pooling.pooled(maps, boxes, side)

    for module in ("proposals", "detector"):
        monkeypatch.setattr(f"erq_export.models.detectors.{module}.batched_nms", suppressed)
    monkeypatch.setattr("erq_export.models.detectors.detector.pooled", seen)
    for head in detector.box:
        head.register_forward_hook(lambda _module, _args, out: logits.append(out[0]))
    found = detector(one)
    pyramid = detector.body(one.pixels)
    scores = torch.stack(logits).mean(0).softmax(1)[:, 1:]
    boxes = found.boxes * one.scale
    choices = Choices(
        values={"boxes": given[-1][0], "labels": found.labels, "scores": found.scores, "masks": found.masks},
        best=[x.topk(min(1000, len(x))).indices for x in objectness_of(pyramid)],
        proposals=stayed[0],
        classes=[x[:, 1:].argmax(1) for x in logits[:-1]],
        above=torch.stack((scores > LEAST_SCORE).nonzero(as_tuple=True)),
        detections=stayed[1],
        boxes=[boxes for boxes, _ in given],
        levels=[pooling.levels_of(boxes) for boxes, _ in given],
    )
    assert torch.allclose(boxes, given[-1][0])
    ledger = Ledger()
    Picture(detector, one, choices, ledger).follow()
    assert {kind: (ties.other, ties.furthest) for kind, ties in ledger.ties.items()} == dict.fromkeys(
        ledger.ties, (0, 0.0)
    )
    assert {kind: gap.largest for kind, gap in ledger.values.items()} == dict.fromkeys(ledger.values, 0.0)
    assert set(ledger.values) == {"boxes", "labels", "scores", "masks"}


def test_a_graph_that_looks_at_another_number_of_anchors_is_told(
    toy_cascade: Deployed, graph: tuple[Path, GraphManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no following it then, and what follows is passed over."""
    monkeypatch.setattr("erq_export.validate.parity.whole.detector.BEST", 999)
    found = followed(toy_cascade, *graph)
    assert found.problems()[0] == "ties apart: the graph has 1000 anchors where the reference has 999"
    assert "does not give what the reference gives" in found.told


def test_a_file_of_another_export_is_refused(graph: tuple[Path, GraphManifest], tmp_path: Path) -> None:
    path, manifest = graph
    with pytest.raises(DataError, match="it has 2 ArgMax, of a whole detector 0 choose"):
        WatchedDetector(path, manifest, n_heads=1)
    site, *sites = manifest.sites
    other = structs.replace(manifest, sites=(structs.replace(site, codes="nowhere"), *sites))
    with pytest.raises(DataError, match="it has no nowhere"):
        WatchedDetector(path, other, n_heads=HEADS)


def test_layers_that_stand_elsewhere_or_not_as_often_are_refused(
    toy_cascade: Deployed, graph: tuple[Path, GraphManifest]
) -> None:
    path, manifest = graph
    first, *rest = manifest.sites
    levels = [i for i, site in enumerate(manifest.sites) if site.path == "body.rpn.conv.0.0"]
    swapped = list(manifest.sites)
    swapped[levels[0]], swapped[levels[1]] = swapped[levels[1]], swapped[levels[0]]
    without = [site for i, site in enumerate(manifest.sites) if i != levels[-1]]
    for sites in ((first, first, *rest), tuple(swapped), tuple(without)):
        with pytest.raises(DataError, match=r"has other codes there|stands in it 2 times, 1 were called"):
            followed(toy_cascade, path, structs.replace(manifest, sites=sites), n=1)
    with pytest.raises(ValueError, match="no picture"):
        followed(toy_cascade, *graph, n=0)
