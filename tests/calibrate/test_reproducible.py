"""Equal seed and images give equal bytes; how many images go together moves last bits of sums, and what hangs on them.

Why bytes cannot be equal for another chunk: a float32 product over another number of rows is added in another order, so
moments and hidden states differ by some 1e-7 of themselves. The bundle states errors as float64 and stores biases in
float32, which shows it; integers show it only where two roundings are as good as each other to seven digits.
The loop therefore has a fixed chunk, and a run has no such option.
"""

import hashlib
from pathlib import Path

import pytest
import torch
from asked import asked
from tiny_vit import random_images, tiny_spec, tiny_vit

from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.methods.method import options_of
from erq_export.contract.bundle import Bundle
from erq_export.contract.spec import ModelSpec, Quantization
from erq_export.data.calibration_set import CalibrationSet, calibration_set
from erq_export.data.digits import Digits
from erq_export.models.loading import Loaded, load

METHODS = ("erq", "gptq", "repq", "rtn")
OPTIONS = ({}, {"inputs": "quantized", "input_ranges": "quantized", "weight_percentiles": "repq"})
DEMO = ModelSpec(name="demo")


def known(method: str, options: dict[str, str]) -> dict[str, str]:
    """Those of the options that the method has."""
    own = options_of(method, {}).__struct_fields__
    return {name: value for name, value in options.items() if name in own}


def calibrated(loaded: Loaded, data: CalibrationSet, spec: Quantization, chunk_size: int = 8) -> Bundle:
    device = torch.device("cpu")
    return calibrate(loaded, data, spec, device=device, progress=lambda *_: None, chunk_size=chunk_size)


def digests(bundle: Bundle, folder: Path) -> dict[str, str]:
    folder.mkdir()
    bundle.save(folder)
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "all options"])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_twice_gives_the_same_bytes(method: str, options: dict[str, str], tmp_path: Path) -> None:
    spec = tiny_spec("w3a4", ("onnx", "tensorrt-rtx"), method=method, **known(method, options))
    first, second = (
        digests(calibrated(tiny_vit(), random_images(), spec), tmp_path / name) for name in ("first", "second")
    )
    assert first == second
    other = digests(calibrated(tiny_vit(), random_images(seed=1), spec), tmp_path / "other")
    assert other != first


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "all options"])
@pytest.mark.parametrize("method", METHODS)
def test_integers_do_not_depend_on_how_many_images_go_together(method: str, options: dict[str, str]) -> None:
    """All equal on the tiny model, at 1, 8 and 32 of 32 images; the input grids as well."""
    spec, data = tiny_spec("w3a4", method=method, **known(method, options)), random_images(32)
    one, eight, all_of_them = (calibrated(tiny_vit(), data, spec, n) for n in (1, 8, 32))
    for other in (one, all_of_them):
        for path, layer in eight.layers.items():
            assert torch.equal(other.layers[path].weight_q, layer.weight_q), path
            assert torch.equal(other.layers[path].weight_qmin, layer.weight_qmin), path
            assert float(other.layers[path].act.scale) == pytest.approx(float(layer.act.scale), rel=1e-6)
            assert other.statistics[path].error == pytest.approx(eight.statistics[path].error, rel=1e-3)


def test_on_a_trained_model_one_row_in_a_hundred_at_most_met_a_tie() -> None:
    """Of 5290 weight rows at w3a4 14 to 28 were measured unlike those of 8 (1 and 32 images, three seeds), with the same
    error. A tie that falls otherwise moves what compensates for it, so a row then differs in a dozen integers or two."""
    loaded = load(DEMO, seed=0)
    data = calibration_set(Digits("train"), loaded.identity.preprocess, n=32, seed=0)
    spec = asked("w3a4", ridge=100.0)
    eight, one = calibrated(loaded, data, spec), calibrated(load(DEMO, seed=0), data, spec, 1)
    differs = [(one.layers[p].weight_q != layer.weight_q).flatten(1).any(1) for p, layer in eight.layers.items()]
    assert int(torch.cat(differs).sum()) <= 0.01 * sum(len(d) for d in differs)
    for path, row in eight.statistics.items():
        assert one.statistics[path].error == pytest.approx(row.error, rel=1e-3), path


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    """The demo: sums that threads share differ in their last bits, which nothing that is stored shows."""
    loaded = load(DEMO, seed=0)
    data = calibration_set(Digits("train"), loaded.identity.preprocess, n=32, seed=0)
    found, before = [], torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        try:
            bundle = calibrated(load(DEMO, seed=0), data, tiny_spec("w3a4", ("onnx", "tensorrt-rtx")))
        finally:
            torch.set_num_threads(before)
        found.append(digests(bundle, tmp_path / str(n)))
    assert found[0] == found[1]
