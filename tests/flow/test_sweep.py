"""A sweep gives a row a job, measures at every seed, and makes nothing twice."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from erq_export.data.held_out import Prepared
from erq_export.flow.job import Job, resolve
from erq_export.flow.store.store import Store
from erq_export.flow.sweep import Calibrated, Name, sweep
from erq_export.flow.work import Work


def jobs(*methods: str, seeds: int = 1) -> list[tuple[Name, Job]]:
    given = {"name": "demo", "bits": "w4a4", "calib": 4, "seeds": seeds, "val_images": 20, "device": "cpu"}
    return [({"method": method}, resolve(given | {"method": method})) for method in methods]


def figures(c: Calibrated) -> tuple[int, str, float]:
    return c.data.fingerprint.n_images, c.bundle.spec.method, c.top1(c.held_out)


def test_a_row_a_job_and_a_result_a_seed(tmp_path: Path) -> None:
    with Store.at(tmp_path) as store:
        rows = list(sweep(jobs("rtn", "repq", seeds=2), figures, store=store))
    assert [name["method"] for name, _ in rows] == ["rtn", "repq"]
    assert all([n, method] == [4, name["method"]] for name, found in rows for n, method, _ in found)
    assert all(len(found) == 2 for _, found in rows)


def test_what_a_stopped_sweep_had_finished_is_not_made_again(tmp_path: Path) -> None:
    with Store.at(tmp_path) as store:
        first = next(iter(sweep(jobs("rtn", "repq"), figures, store=store)))  # stopped behind the first row
    with Store.at(tmp_path) as store:
        rows = list(sweep(jobs("rtn", "repq"), figures, store=store))
        assert store.counts["bundle"].made == store.counts["bundle"].hits == 1
    assert rows[0] == first


def test_jobs_that_agree_in_model_and_images_share_them(tmp_path: Path) -> None:
    works: list[Work] = []
    other = ({"method": "fewer"}, resolve({"name": "demo", "bits": "w4a4", "method": "rtn", "calib": 3, "seeds": 1}))
    with Store.at(tmp_path) as store:
        list(sweep([*jobs("rtn", "repq"), other], lambda c: works.append(c.work), store=store))
    assert works[0] is works[1]
    assert works[2] is not works[1]


def test_the_reference_is_measured_against_the_float_model(tmp_path: Path) -> None:
    """8 bits disturb the layers in place less than 4, and an error is nothing only where nothing differs."""
    given = {"name": "demo", "method": "rtn", "calib": 4, "seeds": 1, "device": "cpu"}
    chosen = [({"bits": bits}, resolve(given | {"bits": bits})) for bits in ("w4a4", "w8a8")]

    def inside(c: Calibrated) -> tuple[float, float]:
        seen = Prepared(tensor=c.data.pixels, fingerprint=c.data.sha256)
        return c.deployed_error(seen), c.logits_error(seen)

    with Store.at(tmp_path) as store:
        (_, [narrow]), (_, [close]) = sweep(chosen, inside, store=store)
    assert all(0 < few < 0.1 * many for few, many in zip(close, narrow, strict=True))


def test_a_job_without_labelled_images_has_none_to_measure_on(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "one.png")
    given = {"name": "vit_t", "pretrained": False, "model_args": {"depth": 1}, "bits": "w4a4", "method": "rtn"}
    job = resolve(given | {"calib": 1, "data": str(tmp_path), "device": "cpu"})
    with Store.none() as store, pytest.raises(ValueError, match="no labelled images"):
        list(sweep([({}, job)], lambda c: c.held_out, store=store))


def test_images_to_judge_by_are_none_that_were_calibrated_on(tmp_path: Path) -> None:
    with Store.at(tmp_path) as store:
        ((_, [(used, others)]),) = sweep(
            jobs("rtn"), lambda c: (c.data.pixels, c.not_calibrated_on(1196).tensor), store=store
        )
    assert len(used) + len(others) == 1200  # all that there are
    assert not any(torch.equal(a, b) for a in used for b in others)


def test_the_number_of_threads_makes_no_other_artifact(tmp_path: Path) -> None:
    """It changes no byte of a bundle: workers of one thread and a run of several share what they make."""
    with Store.at(tmp_path) as store:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            list(sweep(jobs("rtn"), figures, store=store))
        torch.set_num_threads(1)
        assert store.counts["bundle"].made == 1
