"""A detector whose parts run outside PyTorch finds what it finds in PyTorch: the glue, a body per canvas, engines filled up."""

import copy
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_tensorrt import FakeStream, expected, fake, images
from published_detector import CANVAS, FRAMING, PICTURE, framed, picture, toy_detector
from torch import Tensor, nn

from erq_export.backends.tensorrt import package as package_module
from erq_export.backends.tensorrt.execute import LoadedEngine
from erq_export.contract.errors import EngineError
from erq_export.exporters.onnx.parts import part_shapes, parts_of
from erq_export.flow.detection.executed import Executed, Run, in_engine
from erq_export.flow.detection.units import BODY, on_canvas
from erq_export.models.detectors.detector import Detector

CPU = torch.device("cpu")
UPRIGHT = CANVAS[::-1]


def opened(detector: Detector, count: Counter[str], *, prefix: str = "") -> dict[str, Callable[[], Run]]:
    """The parts in PyTorch as things that give their outputs by name; count: how often each was opened."""
    shapes = part_shapes(detector)

    def opener(name: str, module: nn.Module) -> Callable[[], Run]:
        def call(x: Tensor) -> Mapping[str, Tensor]:
            out = module(x)
            return dict(zip(shapes[name].gives, (out,) if isinstance(out, Tensor) else out, strict=True))

        def make() -> Run:
            count[prefix + name] += 1
            return torch.no_grad()(call)

        return make

    return {name: opener(name, module) for name, module in parts_of(detector).items()}


@pytest.mark.parametrize("cascade", [False, True])
def test_parts_that_run_elsewhere_find_what_the_detector_finds(tmp_path: Path, cascade: bool) -> None:
    """Bit for bit: it is the same glue. Bodies are opened when a picture of their canvas comes, heads once."""
    detector = toy_detector(tmp_path, cascade=cascade)
    upright = copy.deepcopy(detector)
    upright.body.set_canvas(UPRIGHT)
    count = Counter[str]()
    parts = opened(detector, count)
    parts[on_canvas(BODY, UPRIGHT)] = opened(upright, count, prefix="upright ")[BODY]
    find = Executed(parts, (CANVAS, UPRIGHT), CPU)
    standing = FRAMING(picture(*PICTURE[::-1], seed=1))
    assert standing.canvas == UPRIGHT
    for one in (framed(seed=1), framed(seed=2), standing):
        wanted, found = detector(one), find(one)
        assert len(wanted.boxes) > 0
        for name in ("boxes", "labels", "scores", "masks"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert set(count) == {*parts, "upright body"} - {on_canvas(BODY, UPRIGHT)}
    assert set(count.values()) == {1}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> LoadedEngine:
    """One that takes 1 to 8 images."""
    trt = fake("rtx", batch=(1, 8, 8))
    monkeypatch.setitem(sys.modules, trt.__name__, trt)
    monkeypatch.setattr(package_module, "cuda_device_count", lambda: 1)
    return LoadedEngine(b"blob", package=trt.__name__, device=CPU, stream=FakeStream(trt.calls))


def test_an_engine_is_always_filled_up(engine: LoadedEngine) -> None:
    """One shape, so nothing is compiled again; no box is a batch like any other."""
    run = in_engine(engine)
    for n in (3, 8, 1, 0):
        pixels = images(n, seed=n)
        torch.testing.assert_close(run(pixels)["logits"], expected(pixels))
    calls: Any = sys.modules["tensorrt_rtx"]
    shapes = {call[2] for call in calls.calls if call[0] == "set_input_shape"}
    assert {shape[0] for shape in shapes} == {8}


def test_more_than_an_engine_takes_is_refused(engine: LoadedEngine) -> None:
    with pytest.raises(EngineError, match="is given 9 rows, its engine takes 8 at most"):
        in_engine(engine)(images(9))
