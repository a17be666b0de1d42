"""The toy cascade of `published_detector`, calibrated at w4a4 on one picture of noise."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from asked import asked
from published_detector import CANVAS, FRAMING, framed, toy, toy_detector

from erq_export.calibrate.framed_set import FramedSet
from erq_export.calibrate.loop import calibrate
from erq_export.contract.bundle import Deployed
from erq_export.models.detectors import architecture
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.loading import load_detector
from erq_export.models.rebuild import reference_model

CASCADE = True


def make_known(patch: pytest.MonkeyPatch) -> None:
    """Let "toy" be a detector that is known by name."""
    patch.setitem(architecture.STAND_INS, "toy", toy(cascade=CASCADE))
    patch.setattr("erq_export.models.detectors.loading.STAND_IN", (FRAMING.short, FRAMING.long))


@pytest.fixture(scope="module")
def toy_cascade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Calibrated, and known while a module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        make_known(patch)
        yield toy_bundle(tmp_path_factory.mktemp("toy"))


def toy_bundle(folder: Path) -> Deployed:
    """Where it is known."""
    path = folder / "toy.pt"
    torch.save(toy_detector(folder, cascade=CASCADE).state_dict(), path)
    loaded = load_detector("toy", canvas=CANVAS, checkpoint=path)
    images = FramedSet(framed=(framed(),), names=("noise",))
    spec = asked("w4a4", ("onnx", "tensorrt-rtx"))
    return calibrate(loaded, images, spec, device=torch.device("cpu"), progress=lambda *_: None).deployed()


def reference(bundle: Deployed) -> Detector:
    """The fake-quant detector."""
    found = reference_model(bundle)
    assert isinstance(found, Detector)
    return found
