"""Graphs of the whole detector beside the reference that breaks its ties as they do, on measured pictures, kept in the store."""

from collections.abc import Callable

import msgspec

from erq_export.backends.machine import versions
from erq_export.contract.bundle import Bundle
from erq_export.contract.files import write_bytes
from erq_export.contract.followed import Followed
from erq_export.flow.artifacts import Artifact, read_manifest
from erq_export.flow.detection.found import framed_pictures
from erq_export.flow.detection.sources import FEW, spread
from erq_export.flow.detection.units import WHOLE, split
from erq_export.flow.detection.work import DetectorWork
from erq_export.flow.measure import Made
from erq_export.flow.store.entry import Work
from erq_export.models.detectors.architecture import Size
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.framing import Framed, laid_on
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.whole.detector import follow_detector

FOLLOWED = "followed.json"


def followed(work: DetectorWork, made: Made) -> dict[str, Followed]:
    """By TARGET/PART, of every graph of the whole."""
    found = {}
    for unit, graph in made.graphs.items():
        kind, canvas = split(unit.partition("/")[2])
        if kind == WHOLE:
            found[unit] = _one(work, made.bundle, graph, canvas or work.canvases[0])
    return found


def _one(work: DetectorWork, bundle: Artifact, graph: Artifact, canvas: Size) -> Followed:
    images, framed = _pictures(work, canvas)

    def make(entry: Work) -> None:
        reference = reference_model(bundle.read(Bundle.load))
        if not isinstance(reference, Detector):
            raise TypeError(f"a {type(reference).__name__} is no detector")
        manifest = read_manifest(graph)
        found = graph.read(
            lambda folder: follow_detector(
                reference, folder / "model.onnx", manifest, framed(), progress=work.ui.progress
            )
        )
        write_bytes(entry.folder / FOLLOWED, msgspec.json.encode(found))

    inputs = {"bundle": bundle.content, "graph": graph.content, "images": images, **work.stages.arithmetic()}
    inputs |= versions("onnxruntime-gpu", "torchvision")
    kept = work.stages.kept("followed", inputs, {}, make, "ties of a whole detector")
    return kept.read(lambda folder: msgspec.json.decode((folder / FOLLOWED).read_bytes(), type=Followed))


def _pictures(work: DetectorWork, canvas: Size) -> tuple[str, Callable[[], list[Framed]]]:
    """A few that lie on the canvas, or, where none does, those of the calibration laid on it: their name in the store, and what
    reads them."""
    truth = work.measured_on
    here = [] if truth is None else [i for i in work.pictures if work.framing.canvas_for(truth.size(i)) == canvas]
    if truth is not None and here:
        some = [here[i] for i in spread(len(here), FEW)]
        return f"{truth.fingerprint} {some} {work.canvases}", lambda: [
            framed for _, framed in framed_pictures(work, some)
        ]
    calibration = work.calibration_images(work.job.data.seed)
    return f"{calibration.fingerprint.pixels_sha256} {canvas}", lambda: [
        Framed(
            pixels=laid_on(one.pixels, canvas),
            size=(min(one.size[0], canvas[0]), min(one.size[1], canvas[1])),
            given=one.given,
        )
        for one in calibration.framed[:FEW]
    ]
