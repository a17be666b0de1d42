"""A job as written to run.json is the job that a later stage reads, from wherever it is started."""

import json
from pathlib import Path

import pytest

from erq_export.contract.errors import SpecError
from erq_export.contract.spec import Bits, ModelSpec, QuantSpec
from erq_export.flow.job import Job


def job(**changes: object) -> Job:
    quant = QuantSpec(bits=Bits.parse("w4a4"), targets=("onnx",))
    return Job(**{"model": ModelSpec(name="demo"), "quant": quant, "out": Path("out"), **changes})  # type: ignore[arg-type]


def test_a_job_survives_json_with_its_paths_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = job(
        model=ModelSpec(name="vit_s", checkpoint="w.pt", model_args={"depth": 2}, preprocess={"crop_pct": 0.9}),
        data=Path("photos"),
        val=Path("/elsewhere/val"),
        compare=(Bits.parse("w3a4"),),
        capability=("8.9",),
        max_drop=1.5,
    )
    monkeypatch.chdir("/")
    monkeypatch.chdir(tmp_path)
    text = json.dumps(asked.to_json())
    monkeypatch.chdir("/")
    again = Job.from_json(json.loads(text), Path("moved"))
    assert (again.data, again.val) == (tmp_path / "photos", Path("/elsewhere/val"))
    assert again.model.checkpoint == str(tmp_path / "w.pt")
    assert (again.quant, again.compare, again.capability) == (asked.quant, asked.compare, asked.capability)
    assert (again.out, again.max_drop) == (Path("moved"), 1.5)


@pytest.mark.parametrize(("name", "value"), [("val_images", -1), ("seeds", 0), ("max_batch", 0)])
def test_counts_are_checked(name: str, value: int) -> None:
    with pytest.raises(SpecError, match=f"--{name.replace('_', '-')} {value}"):
        job(**{name: value})


@pytest.mark.parametrize(("largest", "batch"), [(1, (1, 1, 1)), (4, (1, 4, 4)), (32, (1, 8, 32))])
def test_an_engine_is_tuned_for_batch_8_or_what_it_takes(largest: int, batch: tuple[int, int, int]) -> None:
    assert job(max_batch=largest).batch == batch
