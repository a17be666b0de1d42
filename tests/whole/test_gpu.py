"""What only a CUDA device can show: calibration there finds what it finds on the CPU, up to the order of float32 sums."""

from pathlib import Path

import pytest
import torch
from tiny_swin import tiny_swin
from tiny_vit import random_images, tiny_spec, tiny_vit

from erq_export.calibrate.loop import calibrate
from erq_export.contract.bundle import Bundle
from erq_export.flow.compare import layer_error
from erq_export.models.rebuild import reference_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FAMILIES = pytest.mark.parametrize("tiny", [tiny_vit, tiny_swin], ids=["vit", "swin"])


def calibrated(tiny: object, device: str, **changes: object) -> Bundle:
    loaded = tiny()  # type: ignore[operator]
    size = loaded.identity.preprocess.input_size[1]
    spec = tiny_spec(targets=("onnx", "tensorrt-rtx"), **changes)
    return calibrate(loaded, random_images(size=size), spec, device=torch.device(device), progress=lambda *_: None)


@FAMILIES
@pytest.mark.parametrize("method", ["erq", "gptq", "repq", "rtn"])
def test_the_integers_are_those_of_the_cpu(tiny: object, method: str) -> None:
    """Sums of float32 in another order move ranges and moments by some 1e-6: a weight changes its code only where two
    choices are as good, so few do, and the error that is left is the same to 1 %."""
    cpu, gpu = (calibrated(tiny, device, method=method) for device in ("cpu", "cuda"))
    same = [(cpu.layers[path].weight_q == gpu.layers[path].weight_q).double().mean() for path in cpu.layers]
    assert min(same) > 0.9
    assert float(sum(same)) / len(same) > 0.98
    assert layer_error(gpu) == pytest.approx(layer_error(cpu), rel=0.01)


@FAMILIES
def test_twice_on_the_device_is_the_same_bundle(tiny: object, tmp_path: Path) -> None:
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        calibrated(tiny, "cuda", attention="int8").save(tmp_path / name)
        contents.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


def test_nothing_of_a_bundle_stays_on_the_device() -> None:
    bundle = calibrated(tiny_vit, "cuda", attention="int8")
    tensors = [layer.weight_q for layer in bundle.layers.values()] + list(bundle.leftovers.values())
    tensors += [operand.grid.scale for operand in bundle.operands.values()]
    assert {t.device.type for t in tensors} == {"cpu"}
    with torch.no_grad():
        assert reference_model(bundle)(random_images(2).pixels).isfinite().all()
