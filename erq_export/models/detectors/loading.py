"""Detectors by name: built, given their weights, prepared for calibration."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erq_export.contract.errors import SpecError
from erq_export.contract.identity import Identity, Weights
from erq_export.contract.memory import require_memory
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.spec import ModelSpec
from erq_export.models.checkpoints import read_checkpoint, refuse_non_finite
from erq_export.models.detectors.architecture import (
    CANVAS,
    PUBLISHED,
    STAND_IN,
    STAND_INS,
    Architecture,
    Size,
    architecture_of,
)
from erq_export.models.detectors.body import PATCH
from erq_export.models.detectors.checkpoints import read_published
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.family import FAMILY
from erq_export.models.detectors.framing import LONG, MEAN, SHORT, STD, Framing
from erq_export.models.loading import Loaded

F32 = 4  # bytes
WEIGHTS = Path(__file__).parent  # of the stand-ins
WHITE = 255.0
SURE = 300.0  # times as far apart as they are drawn are the logits of random classes


def framing_of(name: str, *canvases: Size) -> Framing:
    """How its pictures come onto the first of these canvases that holds them."""
    short, long = STAND_IN if name in STAND_INS else (SHORT, LONG)
    return Framing(short=short, long=long, canvases=canvases)


def detector_of(name: str, canvas: Size, *, seed: int = 0) -> Detector:
    """With random weights. SpecError for another name, and for a canvas that is none; MachineError for one that is too large."""
    architecture = architecture_of(name)
    framing_of(name, canvas)
    _require_masks(architecture, canvas)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector(architecture, canvas).eval()


def load_detector(
    name: str, *, canvas: Size = STAND_IN, checkpoint: Path | None = None, seed: int = 0, bundled: bool = False
) -> Loaded:
    """A prepared detector: of a published name the file of that name, of a stand-in its own; random weights without a file.
    bundled: the file came with this package.

    SpecError for the name or the canvas, DataError for the file.
    """
    detector = detector_of(name, canvas, seed=seed)
    source: Weights = "random" if checkpoint is None else "bundled" if bundled else "checkpoint"
    digest: str | None = None
    if checkpoint is not None:
        digest = (read_published if name in PUBLISHED else read_checkpoint)(detector, checkpoint)
    refuse_non_finite(detector)
    identity = Identity(
        name=name,
        timm_name=name,
        model_args={},
        weights=source,
        weights_sha256=digest,
        family=FAMILY.name,
        preprocess=Preprocess.from_config(_preprocess(canvas), {}),
    )
    return Loaded(model=FAMILY.prepare(detector.float()), family=FAMILY, identity=identity)


def load_asked(spec: ModelSpec, *, seed: int) -> Loaded:
    """The detector that a job names, on the first of its canvases: weights of --checkpoint, a stand-in's own, or random ones.

    SpecError where a published detector has no file, DataError for a file that is not its.
    """
    stand_in = spec.name in STAND_INS
    canvases, checkpoint = spec.canvases or (STAND_IN if stand_in else CANVAS,), spec.checkpoint
    framing_of(spec.name, *canvases)
    for canvas in canvases:
        _require_masks(architecture_of(spec.name), canvas)
    if checkpoint is None and spec.pretrained and not stand_in:
        raise SpecError(
            f"the weights of {spec.name} are a file to download: {PUBLISHED[spec.name].file}, "
            "of Swin Transformer's releases for object detection",
            fix="--checkpoint FILE; or --no-pretrained, random weights that try the chain",
        )
    bundled = checkpoint is None and spec.pretrained
    path = WEIGHTS / f"{spec.name}.safetensors" if bundled else None if checkpoint is None else Path(checkpoint)
    loaded = load_detector(spec.name, canvas=canvases[0], checkpoint=path, seed=seed, bundled=bundled)
    if path is None:
        stretch_classes(loaded.model)
    return loaded


@torch.no_grad()
def stretch_classes(detector: nn.Module) -> None:
    """Random weights are sure of nothing, and masks are calibrated on what is found: make box heads sure of something."""
    for name, module in detector.named_modules():
        if name.endswith("predictor.cls_score") and isinstance(module, nn.Linear):
            module.weight *= SURE


def canvas_of(identity: Identity) -> Size:
    """What the detector's body is set to. SpecError where these are no sides of a canvas."""
    channels, height, width = identity.preprocess.input_size
    if channels != len(MEAN):
        raise SpecError(f"a detector takes pictures of {len(MEAN)} channels, not {channels}", fix="calibrate again")
    return height, width


def _require_masks(architecture: Architecture, canvas: Size) -> None:
    """MachineError for a canvas that is too large."""
    require_memory(
        masks_bytes(architecture, canvas),
        f"the masks of a canvas of {canvas[0]}×{canvas[1]}",
        fix="a smaller one, such as 800×1344",
    )


def masks_bytes(architecture: Architecture, canvas: Size) -> int:
    """Of the constants of bias and mask that a prepared body holds: (windows · heads, N, N) a shifted block."""
    tokens, total = architecture.window**2, 0
    height, width = (math.ceil(side / PATCH) for side in canvas)
    for depth, heads in zip(architecture.depths, architecture.heads, strict=True):
        windows = math.ceil(height / architecture.window) * math.ceil(width / architecture.window)
        total += F32 * windows * tokens**2 * (1 + heads * (depth // 2))
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return total


def _preprocess(canvas: Size) -> dict[str, Any]:
    return {
        "input_size": (len(MEAN), *canvas),
        "mean": tuple(value / WHITE for value in MEAN),
        "std": tuple(value / WHITE for value in STD),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
