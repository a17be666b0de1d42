"""A run tells where it loses, on images that it names; sensitivities are made where asked for, then or later, and kept."""

from pathlib import Path

import pytest
import torch
from command_line import MODEL, QUICK, Erq, write_images
from tiny_vit import TINY_LAYERS, random_images, tiny_vit

from erq_export.contract.bundle import Bundle
from erq_export.contract.records import read
from erq_export.contract.report import Report
from erq_export.contract.story import Story, sqnr_db
from erq_export.data.given import AsGiven
from erq_export.data.held_out import Prepared
from erq_export.flow.begin import Own, begin
from erq_export.flow.job import resolve
from erq_export.flow.scene import looked_at
from erq_export.flow.store.store import Store
from erq_export.flow.story import tell
from erq_export.flow.ui import SILENT
from erq_export.flow.work import Work
from erq_export.models.rebuild import reference_model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), 9)


def story_of(out: Path) -> Story:
    found = read(Report, out / "report.json").story
    assert found is not None
    return found


def test_a_run_has_errors_by_depth_and_validate_adds_sensitivities(erq: Erq, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = erq(*MODEL, *QUICK, "--data", photos, "--out", out)
    assert code == 0, said
    found = story_of(out)
    assert [row.path for row in found.depth] == ["embed", "blocks.0", "blocks.1", "head"]
    assert (found.n_images, found.seen_on, found.outputs, found.sensitivity) == (5, "not calibrated on", "logits", ())
    assert found.error == found.depth[-1].both > 0
    assert 0 < sqnr_db(found.error) < 60
    code, said = erq("validate", out, "--sensitivity")
    assert code == 0, said
    again = story_of(out)
    assert {cost.path for cost in again.sensitivity} == set(TINY_LAYERS)
    assert [cost.alone for cost in again.sensitivity] == sorted((c.alone for c in again.sensitivity), reverse=True)
    assert again.error == found.error
    assert max(cost.n_weights for cost in again.sensitivity) == 32 * 32 * 4


def work_of(store: Store, n_given: int, *, val: int = 0, bits: str = "w3a4") -> Work:
    job = resolve({"name": "vit_tiny_patch16_224", "bits": bits, "calib": 4, "device": "cpu"})
    given = AsGiven(random_images(n_given).pixels)
    held = Prepared(tensor=random_images(val, seed=5).pixels, fingerprint="5" * 64) if val else None
    return begin(job, SILENT, store, Own(model=tiny_vit(), calibration=given, held_out=held))


@pytest.mark.parametrize(
    ("n_given", "val", "seen_on", "n"),
    [
        (4, 0, "calibrated on", 4),
        (9, 0, "not calibrated on", 5),
        (50, 0, "not calibrated on", 16),
        (9, 3, "held out", 3),
    ],
)
def test_images_are_held_out_ones_then_others_then_those_calibrated_on(
    n_given: int, val: int, seen_on: str, n: int
) -> None:
    with Store.none() as store:
        work = work_of(store, n_given, val=val)
        data = work.calibration_images(0)
        images, said = looked_at(work, data, 16)
        assert (said, len(images)) == (seen_on, n)
        if seen_on == "not calibrated on":
            pixels = torch.cat(list(images.pixels()))
            assert not any(torch.equal(p, q) for p in pixels for q in data.pixels)


def test_the_story_is_kept_and_its_error_is_the_references(tmp_path: Path) -> None:
    with Store.at(tmp_path / "store") as store:
        work = work_of(store, 9, val=3)
        artifact = work.stages.bundle(work.model, work.calibration_images(0), work.job.quantization)
        found = tell(work, artifact, sensitivity=True)
        assert tell(work, artifact, sensitivity=True) == found
        assert (store.counts["story"].made, store.counts["story"].hits) == (1, 1)
        pixels = random_images(3, seed=5).pixels
        y, y_hat = work.model.model(pixels), reference_model(artifact.read(Bundle.load))(pixels)
        assert found is not None
        assert found.error == pytest.approx(float((y_hat - y).square().sum() / y.square().sum()), rel=0.02)
        assert max(cost.alone for cost in found.sensitivity) < 2 * found.error
        assert min(cost.raised for cost in found.sensitivity) < found.error  # some layer gives something back


def test_a_bundle_of_other_images_has_no_story(tmp_path: Path) -> None:
    """Its folds are theirs: found again from these images they would be wrong."""
    with Store.none() as store:
        work, other = work_of(store, 9), work_of(store, 40)
        artifact = other.stages.bundle(other.model, other.calibration_images(0), other.job.quantization)
        assert tell(work, artifact, sensitivity=False) is None
