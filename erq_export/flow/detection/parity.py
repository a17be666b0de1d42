"""Every part's graphs beside the fake-quant parts, on what the reference detector gives them for one calibration picture."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from erq_export.contract.bundle import Bundle, Deployed
from erq_export.contract.detection import PartParity
from erq_export.exporters.onnx.parts import PartShape, part_shapes, parts_of
from erq_export.flow.artifacts import Artifact, read_manifest
from erq_export.flow.detection.units import BODY, WHOLE, split
from erq_export.flow.measure import Made, unique_graphs
from erq_export.flow.ui import Ui
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.framing import Framed, laid_on
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.part import check_part

MOST_BOXES = 32  # a head is called with; each layer sees 49 or 196 rows of every box


def parities(made: Made, framed: Framed, ui: Ui) -> dict[str, PartParity]:
    """By TARGET/PART. tensorrt and tensorrt-rtx have the same graphs, so that is looked at once."""
    bundle = made.bundle.read(Bundle.load).deployed()
    detector = reference_model(bundle)
    if not isinstance(detector, Detector):
        raise TypeError(f"a {type(detector).__name__} is no detector")
    given, shapes, first = inputs_of(detector, framed), part_shapes(detector), detector.body.canvas
    looked_at = unique_graphs(tuple(dict.fromkeys(unit.partition("/")[0] for unit in made.graphs)))
    found: dict[str, PartParity] = {}
    for unit, graph in made.graphs.items():
        target, _, part = unit.partition("/")
        kind, canvas = split(part)
        if kind == WHOLE or kind not in given or target not in looked_at:
            continue
        x = given[kind] if canvas is None else laid_on(framed.pixels, canvas)
        if kind == BODY:
            detector.body.set_canvas(first if canvas is None else canvas)
        found[unit] = _one(bundle, parts_of(detector)[kind], graph, x, shapes[kind], ui)
    return found


def _one(bundle: Deployed, module: nn.Module, graph: Artifact, x: Tensor, shape: PartShape, ui: Ui) -> PartParity:
    manifest = read_manifest(graph)
    own = {site.path for site in manifest.sites}
    layers = {path: layer for path, layer in bundle.layers.items() if path in own}
    return graph.read(
        lambda folder: check_part(
            module,
            folder / "model.onnx",
            manifest,
            layers,
            x,
            takes=shape.takes,
            gives=shape.gives,
            progress=ui.progress,
        )
    )


@torch.no_grad()
def inputs_of(detector: Detector, framed: Framed) -> Mapping[str, Tensor]:
    """What each part gets for this picture, a few boxes of it for heads. A mask head gets nothing where nothing is found."""
    given: dict[str, Tensor] = {}

    def see(name: str) -> object:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            given[name] = args[0][:MOST_BOXES]

        return hook

    handles = [part.register_forward_pre_hook(see(name)) for name, part in detector.parts().items()]  # type: ignore[arg-type]
    try:
        detector(framed)
    finally:
        for handle in handles:
            handle.remove()
    return given
