"""What a full-size detector costs to calibrate, and what its parts compile to: python benchmarks/detectors.py [--models …].

Random weights, one picture, ERQ: time of every stage, largest memory, and of TensorRT-RTX's plan for each part how many products
and convolutions are integer. Accuracy is no question of random weights.
"""

import gc
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import sheet
import torch
from PIL import Image

from erq_export.backends.tensorrt import available
from erq_export.calibrate.framed_set import FramedSet, framed_set
from erq_export.calibrate.loop import calibrate
from erq_export.contract.bundle import Deployed
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.errors import SpecError
from erq_export.contract.records import plain_of
from erq_export.contract.targets import named
from erq_export.data.images import ImageFolder
from erq_export.data.scenes import scene
from erq_export.exporters.onnx.parts import batches, part_graphs
from erq_export.exporters.onnx.write import lowered, save
from erq_export.exporters.tensorrt.build import build
from erq_export.flow import page
from erq_export.flow.job import resolve
from erq_export.flow.meter import Meter
from erq_export.models.aliases import DETECTOR_RIDGE
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.heads import BOX_SIDE
from erq_export.models.detectors.loading import framing_of, load_detector
from erq_export.models.detectors.pooling import pooled
from erq_export.models.detectors.proposals import proposals
from erq_export.models.loading import Loaded

MODELS = ("mask_rcnn_swin_t", "cascade_mask_rcnn_swin_t")
TARGETS = ("onnx", "tensorrt-rtx")
CAPABILITY = "8.9"
SPREAD = 3.0  # of a confident detector's logits


def canvas_of(text: str) -> tuple[int, int]:
    """800x1344 → (800, 1344)"""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise SpecError(f"--canvas {text}", fix="height and width, such as --canvas 800x1344")
    return int(sides[0]), int(sides[1])


@torch.no_grad()
def confident(loaded: Loaded, images: FramedSet) -> None:
    """Stretch each box head's classes until random weights find something: masks are calibrated on detections."""
    detector, one = cast(Detector, loaded.model), images.framed[0]
    pyramid = detector.body(one.pixels)
    inside = pooled(pyramid.maps, proposals(pyramid, one.size), BOX_SIDE)
    for head in detector.box:
        layer = cast(torch.nn.Linear, head.get_submodule("predictor.cls_score"))
        layer.weight *= SPREAD / head(inside)[0].std()


PARTS = {"body.fpn": "pyramid", "body.rpn": "proposals", "body": "swin", "box": "box", "mask": "mask"}


class Clock:
    """Seconds of every stage, and of the parts that they are of."""

    def __init__(self) -> None:
        self.name, self.since = "", time.perf_counter()
        self.stages: dict[str, float] = {}

    def __call__(self, stage: str, _done: int, _of: int) -> None:
        now = time.perf_counter()
        if self.name:
            self.stages[self.name] = now - self.since
            print(f"  {self.name}: {now - self.since:.1f} s", flush=True)
        self.name, self.since = stage, now

    @property
    def parts(self) -> dict[str, float]:
        found = dict.fromkeys(PARTS.values(), 0.0)
        for stage, seconds in self.stages.items():
            found[next(part for prefix, part in PARTS.items() if stage.startswith(prefix))] += seconds
        return found


def engines(bundle: Deployed, folder: Path) -> dict[str, dict[str, Any]]:
    """Part → what the builder makes of it; nothing is executed."""
    found = {}
    for name, graph in part_graphs(bundle).items():
        place = folder / name
        place.mkdir(parents=True)
        model, manifest = lowered(graph, named("tensorrt-rtx"), None)
        save(model, place / "model.onnx")
        asked = EngineSpec(batch=batches(name), capability=(CAPABILITY,))
        record = build(
            place / "model.onnx", manifest, place, package="tensorrt_rtx", asked=asked, gpu=None, on_progress=None
        )
        found[name] = {"claimed": len(manifest.sites), "problems": list(record.problems), "bytes": record.bytes}
        found[name] |= {"build_s": record.build_s, **plain_of(record.plan)}
        print(
            f"  {name}:", {k: found[name][k] for k in ("claimed", "gemm", "conv", "attention", "problems")}, flush=True
        )
    return found


def measure(name: str, canvas: tuple[int, int], bits: str) -> dict[str, Any]:
    """One detector."""
    loaded = load_detector(name, canvas=canvas)
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(scene(0, seed=0).picture).save(Path(folder) / "scene.png")
        images = framed_set(ImageFolder(Path(folder)), framing_of(name, canvas), n=1, seed=0)
    confident(loaded, images)
    # what is asked of layers is the same for every model; the name is not read
    given: Mapping[str, Any] = {"name": "vit_s", "pretrained": False, "targets": TARGETS, "bits": bits}
    meter, clock = Meter(), Clock()
    with meter.stage("calibrate"):
        bundle = calibrate(
            loaded,
            images,
            resolve(given, options={"ridge": DETECTOR_RIDGE}).quantization,
            device=torch.device("cpu"),
            progress=clock,
        )
    (cost,) = meter.stages
    row = {"model": name, "layers": len(bundle.layers), "stages": clock.stages, "parts": clock.parts, **plain_of(cost)}
    print(f"{name}: {cost.wall_s:.0f} s, {cost.peak_mib:.0f} MiB", flush=True)
    del loaded
    gc.collect()
    if available("tensorrt_rtx") is not None:
        with tempfile.TemporaryDirectory() as folder:
            row["engines"] = engines(bundle.deployed(), Path(folder))
    return row


def main() -> None:
    words = sheet.words(__doc__, {"models": MODELS, "canvas": "800x1344", "bits": "w4a4"})
    canvas = canvas_of(words.canvas)
    about = {"canvas": list(canvas), "bits": words.bits, "capability": CAPABILITY}
    about["machine"] = page.machine("torch", "torchvision", "timm", "tensorrt-rtx-cu13")
    rows: list[dict[str, Any]] = []
    for name in words.models:
        rows.append(measure(name, canvas, words.bits))
        sheet.write(words, "detectors", about | {"rows": rows})


if __name__ == "__main__":
    sheet.start(main)
