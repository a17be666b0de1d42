"""A detector goes through the loop of the classifiers: stages whose states hold several tensors, heads on the float boxes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asked import asked
from PIL import Image
from published_detector import CANVAS, FRAMING, framed, toy, toy_detector
from torch import Tensor, nn

from erq_export.calibrate.framed_set import FramedSet, framed_set
from erq_export.calibrate.loop import calibrate
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError, SpecError
from erq_export.contract.quantized import QuantConv2d, QuantLinear
from erq_export.contract.spec import Quantization
from erq_export.data.scenes import Scenes
from erq_export.models.detectors import architecture
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.framing import Framed, Framing
from erq_export.models.detectors.loading import load_detector
from erq_export.models.detectors.sites import detector_sites
from erq_export.models.family import run
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model

TARGETS = ("onnx", "tensorrt-rtx")


@pytest.fixture(params=[False, True], ids=["mask", "cascade"])
def loaded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    return toy_loaded(tmp_path, monkeypatch, cascade=request.param)


@pytest.fixture
def single(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    return toy_loaded(tmp_path, monkeypatch, cascade=False)


def toy_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, *, cascade: bool) -> Loaded:
    """The toy under a name of its own, with the weights of a file like the published ones."""
    monkeypatch.setitem(architecture.STAND_INS, "toy", toy(cascade=cascade))
    monkeypatch.setattr("erq_export.models.detectors.loading.STAND_IN", (FRAMING.short, FRAMING.long))
    path = folder / "toy.pt"
    torch.save(toy_detector(folder, cascade=cascade).state_dict(), path)
    return load_detector("toy", canvas=CANVAS, checkpoint=path)


def images(n: int = 1) -> FramedSet:
    return FramedSet(framed=tuple(framed(seed=i + 1) for i in range(n)), names=tuple(f"noise/{i}" for i in range(n)))


def detector_of(model: nn.Module) -> Detector:
    assert isinstance(model, Detector)
    return model


def bundle_of(loaded: Loaded, spec: Quantization, n: int = 1) -> Bundle:
    return calibrate(loaded, images(n), spec, device=torch.device("cpu"), progress=lambda *_: None)


def test_stages_one_after_the_other_are_the_detector(loaded: Loaded) -> None:
    whole = detector_of(loaded.model)(framed())
    end = run(loaded.stages, images().chunks(1)[0])
    assert isinstance(end, dict)
    assert len(whole.boxes) > 0
    assert torch.equal(end["boxes"] / framed().scale, whole.boxes)
    for name in ("labels", "scores", "masks"):
        assert torch.equal(end[name], getattr(whole, name))


def test_every_layer_is_in_one_stage(loaded: Loaded) -> None:
    of_stages = [site for stage in loaded.stages for site in stage.sites]
    assert sorted(site.path for site in of_stages) == sorted(s.path for s in detector_sites(detector_of(loaded.model)))


def worst(found: Detector, wanted: Detector) -> float:
    """‖ŷ − y‖/‖y‖ of what the parts give for equal inputs, the worst one's."""
    pixels, chance = framed().pixels, torch.Generator().manual_seed(0)
    pairs: list[tuple[Tensor, Tensor]] = list(zip(found.body(pixels).maps, wanted.body(pixels).maps, strict=True))
    for kind, side in (("box", 7), ("mask", 14)):
        x = torch.randn(6, 16, side, side, generator=chance)
        for a, b in zip(getattr(found, kind), getattr(wanted, kind), strict=True):
            ya, yb = a(x), b(x)
            pairs += zip(ya, yb, strict=True) if kind == "box" else [(ya, yb)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("cascade", [False, True])
def test_a_bundle_becomes_the_quantized_detector_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cascade: bool
) -> None:
    fresh = toy_loaded(tmp_path, monkeypatch, cascade=cascade)
    wanted = detector_of(toy_loaded(tmp_path, monkeypatch, cascade=cascade).model)
    bundle = bundle_of(fresh, asked("w8a8", TARGETS))
    (tmp_path / "bundle").mkdir()
    bundle.save(tmp_path / "bundle")
    found = detector_of(reference_model(Bundle.load(tmp_path / "bundle")))
    calibrated = detector_of(fresh.model)
    for name in ("boxes", "labels", "scores", "masks"):
        assert torch.equal(getattr(found(framed()), name), getattr(calibrated(framed()), name))
    left = [m for m in found.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(isinstance(m, QuantConv2d | QuantLinear | nn.ConvTranspose2d) for m in left)
    assert 1e-4 < worst(found, wanted) < 0.1


def test_the_proposal_heads_statistics_are_of_five_levels(single: Loaded) -> None:
    bundle = bundle_of(single, asked("w4a4", TARGETS), n=2)
    places = 40 * 48 + 20 * 24 + 10 * 12 + 5 * 6 + 3 * 3
    for path in ("body.rpn.conv.0.0", "body.rpn.cls_logits", "body.rpn.bbox_pred"):
        assert bundle.statistics[path].n_rows == 2 * places


class Memory:
    """Checkpoints that stop the calibration behind a stage."""

    def __init__(self, folder: Path, stop: int) -> None:
        self.folder, self.left = folder, stop

    def save(self, name: str, write: Callable[[Path], None]) -> bool:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        write(self.folder / name)
        return True

    def read(self, name: str) -> Path | None:
        return self.folder / name if (self.folder / name).is_file() else None


@pytest.mark.parametrize("stop", [3, 12])
def test_a_calibration_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    def one(memory: Memory | None) -> Bundle:
        fresh = toy_loaded(tmp_path, monkeypatch, cascade=False)
        return calibrate(
            fresh,
            images(),
            asked("w4a4", TARGETS),
            device=torch.device("cpu"),
            progress=lambda *_: None,
            checkpoints=memory,
        )

    whole = one(None)
    with pytest.raises(KeyboardInterrupt):
        one(Memory(tmp_path, stop))
    again = one(Memory(tmp_path, 100))
    assert whole.tensors().keys() == again.tensors().keys()
    assert all(torch.equal(t, again.tensors()[name]) for name, t in whole.tensors().items())


def test_images_on_which_nothing_is_found_are_refused(single: Loaded) -> None:
    """The mask head sees nothing of them; the original calibrates it on the first test image then."""
    box = detector_of(single.model).box[0].get_submodule("predictor.cls_score")
    assert isinstance(box, nn.Linear)
    box.bias[0] += 100  # all is background
    with pytest.raises(DataError, match=r"no calibration image gives mask\.0") as caught:
        bundle_of(single, asked("w4a4", TARGETS))
    assert "other images" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (asked("w4a4", TARGETS, inputs="quantized"), "other boxes"),
        (asked("w4a4", TARGETS, input_ranges="quantized"), "other boxes"),
        (asked("w4a4", ("reference",)), "is a convolution"),
    ],
    ids=["quantized inputs", "quantized ranges", "reference alone"],
)
def test_what_a_detector_cannot_be_is_refused(single: Loaded, spec: Quantization, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        bundle_of(single, spec)


def test_pictures_on_another_canvas_are_refused_before_the_work(single: Loaded) -> None:
    other = FramedSet(framed=(Framed(pixels=torch.zeros(1, 3, 96, 96), size=(96, 96), given=(96, 96)),), names=("a",))
    with pytest.raises(DataError, match="canvas of 96×96 pixels, the detector is set to 160×192"):
        calibrate(single, other, asked("w4a4", TARGETS), device=torch.device("cpu"), progress=lambda *_: None)


class Turned:
    """Scenes, every other one upright."""

    labels = None

    def __init__(self, source: Scenes) -> None:
        self.source, self.fingerprint = source, source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        return self.source.name(i)

    def image(self, i: int) -> Image.Image:
        return self.source.image(i).rotate(90 * (i % 2), expand=True)


def test_pictures_are_drawn_from_those_of_one_canvas() -> None:
    source = Scenes(5, seed=0)
    drawn = framed_set(source, Framing(short=192, long=256, canvases=((192, 256),)), n=3, seed=0)
    assert len(set(drawn.names)) == 3
    assert [tuple(state["pixels"].shape) for state in drawn.chunks(8)] == [(1, 3, 192, 256)] * 3  # type: ignore[call-overload,index]
    again = framed_set(source, Framing(short=192, long=256, canvases=((192, 256),)), n=3, seed=0)
    assert again.fingerprint == drawn.fingerprint
    with pytest.raises(DataError, match="--calib 6 images"):
        framed_set(source, Framing(), n=6, seed=0)
    mixed = Turned(Scenes(6, seed=0))
    lying = framed_set(mixed, Framing(short=192, long=256, canvases=((192, 256),)), n=3, seed=0)
    assert set(lying.names) == {mixed.name(i) for i in (0, 2, 4)}  # upright ones are passed over
    with pytest.raises(DataError, match="only 3 of 6 pictures"):
        framed_set(mixed, Framing(short=192, long=256, canvases=((192, 256),)), n=4, seed=0)
    with pytest.raises(DataError, match="canvases of"):
        FramedSet(framed=(framed(), FRAMING(torch.zeros(3, 182, 150, dtype=torch.uint8))), names=("a", "b"))
