"""What each way of running a detector finds on the measured pictures, in COCO's form, kept in the store."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from erq_export.backends.device import gpu_here
from erq_export.backends.machine import versions
from erq_export.backends.onnxruntime import session
from erq_export.backends.tensorrt import available
from erq_export.contract.bundle import Bundle
from erq_export.contract.files import write_bytes
from erq_export.contract.targets import named
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection.executed import in_engines
from erq_export.flow.detection.work import DetectorWork
from erq_export.flow.store.entry import Work
from erq_export.models.detectors.architecture import Size
from erq_export.models.detectors.detector import Detections, Detector
from erq_export.models.detectors.framing import Framed
from erq_export.models.detectors.whole import GIVES, TAKES
from erq_export.models.rebuild import reference_model
from erq_export.validate.metrics.average_precision import Found, in_cocos_form
from erq_export.validate.parity.floor import trembling

FOUND = "found.json"
Find = Callable[[Framed], Detections]


def of_float(work: DetectorWork) -> list[Found]:
    """Of the float detector in PyTorch."""
    return _found(work, "float", work.model.fingerprint, lambda: _in_torch(work, copy.deepcopy(work.model.model)))


def of_reference(work: DetectorWork, bundle: Artifact) -> list[Found]:
    """Of a bundle's fake-quant detector in PyTorch."""
    return _found(
        work,
        "reference",
        bundle.content,
        lambda: _in_torch(work, reference_model(bundle.read(Bundle.load))),
    )


def of_trembling(work: DetectorWork, bundle: Artifact, pictures: Sequence[int], e: float) -> list[Found]:
    """Of the reference on some of the pictures, while every layer's input is off by a rounding, relatively e."""

    def made() -> Find:
        reference = reference_model(bundle.read(Bundle.load))
        find, generator = _in_torch(work, reference), torch.Generator().manual_seed(0)

        def trembles(framed: Framed) -> Detections:
            with trembling(reference, e, generator):
                return find(framed)

        return trembles

    return _found(work, f"reference, trembling by {e:.0e}", bundle.content, made, pictures)


def of_graphs(work: DetectorWork, graphs: Mapping[Size, Artifact]) -> list[Found]:
    """Of a whole detector's graphs in ONNX Runtime on the CPU, by the canvas of each."""
    content = " ".join(graph.content for graph in graphs.values())

    def made() -> Find:
        opened = dict[Size, Find]()  # one at a time: pictures of one canvas follow each other

        def find(framed: Framed) -> Detections:
            if framed.canvas not in opened:
                opened.clear()
                opened[framed.canvas] = in_onnxruntime(graphs[framed.canvas].folder / "model.onnx")
            return opened[framed.canvas](framed)

        return find

    return _found(work, "onnxruntime", content, made)


def of_engines(work: DetectorWork, target: str, engines: Mapping[str, Artifact]) -> list[Found]:
    """Of the engines of one target's parts, by the part's name, on this machine's GPU."""
    content = [f"{part} {engine.content}" for part, engine in sorted(engines.items())]
    ran_on = f"{gpu_here()} {available(str(named(target).package))}"  # the job's device need not be that GPU
    return _found(work, f"{target} engines", " ".join((*content, ran_on)), lambda: in_engines(engines, work.canvases))


def _in_torch(work: DetectorWork, model: torch.nn.Module) -> Find:
    if not isinstance(model, Detector):
        raise TypeError(f"a {type(model).__name__} is no detector")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    detector, device = model.to(work.stages.device).eval(), work.stages.device

    @torch.no_grad()
    def find(framed: Framed) -> Detections:
        found: Detections = detector(Framed(pixels=framed.pixels.to(device), size=framed.size, given=framed.given))
        return found.cpu()

    return find


def in_onnxruntime(path: Path) -> Find:
    """A graph of `exporters.onnx.parts.whole_graph`."""
    running = session(path)

    def find(framed: Framed) -> Detections:
        feeds = dict(zip(TAKES, (framed.pixels.numpy(), np.array(framed.size)), strict=True))
        boxes, labels, scores, masks = (torch.from_numpy(y) for y in running.run(list(GIVES), feeds))
        return Detections(boxes=boxes / framed.scale, labels=labels, scores=scores, masks=masks)

    return find


def framed_pictures(work: DetectorWork, pictures: Sequence[int]) -> Iterator[tuple[int, Framed]]:
    """Position and picture on its canvas, one by one; those of one canvas follow each other, as masks are made for each."""
    truth, framing = work.measured_on, work.framing
    if truth is None:
        raise ValueError("the job has nothing to find")
    for i in sorted(pictures, key=lambda i: framing.canvases.index(framing.canvas_for(truth.size(i)))):
        picture = torch.from_numpy(np.asarray(truth.image(i).convert("RGB")).copy()).permute(2, 0, 1)
        yield i, framing(picture)


def _found(
    work: DetectorWork, what: str, content: str, made: Callable[[], Find], some: Sequence[int] | None = None
) -> list[Found]:
    """Found again in the store, or by running `made()` on every picture, or on some."""
    truth, pictures = work.measured_on, work.pictures if some is None else some
    if truth is None:
        raise ValueError("the job has nothing to find")

    def make(entry: Work) -> None:
        ids = image_ids(work)
        categories = sorted(category["id"] for category in truth.truth(())["categories"])
        find, found = made(), list[Found]()
        for n, (i, framed) in enumerate(framed_pictures(work, pictures)):
            work.stages.ui.progress(what, n, len(pictures))
            found += in_cocos_form(find(framed), image_id=ids[i], size=framed.given, category_ids=categories)
        write_bytes(entry.folder / FOUND, msgspec.json.encode(found))

    inputs = {
        "subject": content,
        "runner": what,
        "images": f"{truth.fingerprint} {tuple(pictures)} {work.canvases}",
        **work.stages.arithmetic(),
    }
    inputs |= versions("onnxruntime-gpu", "torchvision", "faster-coco-eval")
    kept = work.stages.kept("detections", inputs, {}, make, f"detections of {what}")
    return kept.read(lambda folder: list(msgspec.json.decode((folder / FOUND).read_bytes(), type=list[Found])))


def image_ids(work: DetectorWork) -> dict[int, int]:
    """Position → id of the picture in results."""
    truth = work.measured_on
    return {} if truth is None else {i: truth.id(i) for i in work.pictures}
