"""--budget: bits are chosen on images not calibrated on, kept within it, and written down so that nothing is chosen again."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import MODEL, QUICK, Erq, write_images
from tiny_vit import TINY, TINY_ARGS, TINY_LAYERS, random_images
from torch import nn

import erq_export
from erq_export.contract.bits import Bits
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError, SpecError
from erq_export.contract.records import read
from erq_export.contract.report import Report
from erq_export.flow.job import read_run, resolve
from erq_export.models.names import architecture

ASKED: dict[str, Any] = {"name": "demo"}


def own() -> nn.Module:
    """A caller's own model."""
    return architecture(TINY, TINY_ARGS, seed=0)


def mean_bits(bundle: Bundle) -> float:
    sizes = {path: layer.weight_q.numel() for path, layer in bundle.layers.items()}
    return sum(n * bundle.layers[path].w_bits for path, n in sizes.items()) / sum(sizes.values())


def words(*more: object) -> list[object]:
    return [*MODEL, *QUICK[2:], *more]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), 12)


@pytest.mark.parametrize(("given", "base"), [(["auto"], "w3a8"), (["w4a6,head=w8a8"], "w4a6,head=w8a8")])
def test_what_was_chosen_is_in_the_records_and_makes_the_same_bundle(
    erq: Erq, photos: Path, tmp_path: Path, given: list[str], base: str
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    code, said = erq(*words("--bits", *given, "--budget", "3.5", "--data", photos, "--out", out))
    assert code == 0, said
    bundle, job = Bundle.load(out / "bundle"), read_run(out)
    assert mean_bits(bundle) <= 3.5
    assert len({layer.w_bits for layer in bundle.layers.values()}) > 1
    assert job.method.budget is None
    assert job.method.bits == bundle.spec.bits == read(Report, out / "report.json").quantization.bits
    assert str(job.method.bits).startswith(base.split(",")[0])
    assert str(job.method.bits.at("head")) == "w8a8" or "head" not in base
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["job"]["method"]["bits"] == str(job.method.bits)
    assert manifest["job"]["method"]["budget"] is None
    code, said = erq(*words("--bits", job.method.bits, "--data", photos, "--out", again))
    assert code == 0, said
    assert (again / "bundle" / "tensors.safetensors").read_bytes() == (
        out / "bundle" / "tensors.safetensors"
    ).read_bytes()
    code, said = erq("validate", out)
    assert code == 0, said


def test_python_chooses_too_and_takes_images_beyond_those_of_the_calibration() -> None:
    loader = random_images(30).pixels.split(8)
    given: dict[str, Any] = {"budget": 3.0, "data": loader, "calib": 8, "store": None}
    bundle = erq_export.calibrate(own(), bits="auto", **given)
    assert mean_bits(bundle) <= 3.0
    assert bundle.spec.bits.base == Bits(w=3, a=8)
    assert set(bundle.layers) == set(TINY_LAYERS)


def test_without_images_to_judge_by_nothing_is_chosen() -> None:
    with pytest.raises(DataError, match="none is left to judge"):
        erq_export.calibrate(own(), bits="auto", budget=4, calib=8, data=random_images(8).pixels, store=None)


def test_a_budget_that_own_bits_exceed_is_refused() -> None:
    with pytest.raises(SpecError, match="the mean is"):
        erq_export.calibrate(own(), bits="w4a4,*=w8a8", budget=4, calib=8, data=random_images(12).pixels, store=None)


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"bits": "auto"}, "needs --budget"), ({"bits": "auto", "budget": 9.0}, "--budget"), ({"bits": "auto4"}, "form")],
)
def test_what_no_choice_can_be_made_of_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        resolve(ASKED | asked)


def test_auto_is_the_base_below_the_budget_and_bits_are_read_after_the_choice() -> None:
    job = resolve(ASKED | {"bits": "auto", "budget": "3.5"}, typed=True)
    assert (job.method.bits, job.method.budget) == (Bits(w=3, a=8), 3.5)
    with pytest.raises(ValueError, match="not chosen"):
        _ = job.quantization
