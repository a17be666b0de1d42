"""What a user gives becomes one job, wherever it comes from; as written to run.json it is the job that a later stage reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from erq_export.calibrate.published.papers import PAPERS
from erq_export.contract.errors import DataError, SpecError
from erq_export.contract.records import decode, encode, plain_of
from erq_export.contract.spec import Bits, DeploySpec
from erq_export.flow.job import Job, RunRecord, absolute, read_run, resolve

ASKED: dict[str, Any] = {"name": "vit_s", "bits": Bits(w=4, a=4)}
WORDS: dict[str, Any] = {"name": "vit_s", "bits": "w4a4"}


def test_words_and_values_make_the_same_job() -> None:
    words = resolve(
        WORDS
        | {"calib": "7", "seed": "3", "max_drop": "1.5", "compare": ("w3a4",), "targets": ("onnx", "tensorrt-rtx")},
        options={"ridge": "1e3", "rounding": "paper", "dual": "false"},
        typed=True,
    )
    values = resolve(
        ASKED
        | {"calib": 7, "seed": 3, "max_drop": 1.5, "compare": (Bits(w=3, a=4),), "targets": ("onnx", "tensorrt-rtx")},
        options={"ridge": 1000.0, "rounding": "paper", "dual": False},
    )
    assert words == values


def test_a_job_as_plain_data_is_what_json_gives_back() -> None:
    """By this an unfinished run in a folder is known to be the same job. Not so where tuples are left as tuples."""
    job = plain_of(resolve(WORDS | {"compare": ("w3a4",), "targets": ("onnx", "tensorrt-rtx")}, typed=True))
    assert json.loads(json.dumps(job)) == job


def test_an_alias_changes_defaults_and_what_is_given_wins() -> None:
    alone = ASKED | {"name": "deit_t", "published": "icml", "targets": ("reference",)}
    assert resolve(ASKED | {"name": "deit_t"}).options.ridge == "auto"  # type: ignore[attr-defined]
    assert resolve(alone).options.ridge == 1e3  # type: ignore[attr-defined]
    assert resolve(ASKED | {"name": "deit_t"}, options={"ridge": 5.0}).options.ridge == 5.0  # type: ignore[attr-defined]
    demo = resolve(ASKED | {"name": "demo"})
    assert (demo.evaluate.seeds, demo.evaluate.compare) == (5, (Bits(w=3, a=4), Bits(w=2, a=4)))
    assert resolve(ASKED | {"name": "demo", "seeds": 1}).evaluate.seeds == 1
    assert "ridge" not in resolve(ASKED | {"name": "deit_t", "method": "gptq"}).method.options


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_is_a_preset_where_its_reference_is_all_that_is_wanted(paper: str) -> None:
    asked = ASKED | {"published": paper, "targets": ("reference",)}
    alone = resolve(asked, options={"flips": 7})
    assert {name: alone.method.options[name] for name in PAPERS[paper].options} == PAPERS[paper].options
    assert (alone.method.options["flips"], alone.deploy.precision) == (7, "paper")
    assert resolve(asked | {"attention": "fp16"}).deploy.precision == "fp16"
    beside = resolve(asked | {"targets": ("reference", "onnx")})
    assert beside.options == resolve(ASKED).options
    with pytest.raises(SpecError, match="setting of the target reference"):
        resolve(ASKED | {"published": paper})


@pytest.mark.parametrize("targets", [("onnx",), ("reference", "tensorrt-rtx")])
@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"attention": "paper"}, {}, "--attention paper"),
        ({}, {"dual": True}, "-O dual=true"),
        ({}, {"zero_points": "mean"}, "-O zero_points=mean"),
        ({}, {"patch_input": "float"}, "-O patch_input=float"),
    ],
)
def test_what_no_target_can_run_is_refused(
    targets: tuple[str, ...], change: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        resolve(ASKED | change | {"targets": targets}, options=options)
    assert caught.value.problem.startswith(f"{words} cannot be deployed to {targets[-1]}")
    assert caught.value.fix == f"leave {words} out, or --to reference alone"
    alone = resolve(ASKED | change | {"targets": ("reference",)}, options=options)
    assert not alone.quantization.rules.holds_zero


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"bits": None}, {}, "--bits is missing"),
        ({"momentum": 1}, {}, "unknown option 'momentum'"),
        ({"published": "icnl", "targets": ("reference",)}, {}, "icnl"),
        ({"pack": "int4", "bits": Bits(w=5, a=8)}, {}, "do not fit 4"),
        ({}, {"mipq_columns": 5}, "rounding=flip"),
        ({}, {"attention_bits": 5}, "--attention fp16"),
        ({"method": "rtn"}, {"ridge": 1.0}, "changes nothing with --method rtn"),
        ({"seeds": 0}, {}, "--seeds 0"),
        ({"val_images": -1}, {}, "--val-images -1"),
        ({"max_batch": 0}, {}, "--max-batch 0"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says.replace("(", r"\(")):
        resolve(ASKED | change, options=options)


def test_equal_rules_are_one_slice_of_calibration() -> None:
    """Another target with the same rules, and everything that calibration does not look at, leave the slice as it is."""
    both = resolve(ASKED | {"targets": ("onnx", "tensorrt-rtx")}).quantization
    assert resolve(ASKED | {"targets": ("tensorrt-rtx",)}).quantization == both
    assert resolve(ASKED | {"targets": ("tensorrt",), "max_drop": 1, "seeds": 3, "max_batch": 4}).quantization == both
    assert resolve(ASKED | {"targets": ("onnx",)}).quantization != both
    assert resolve(ASKED | {"targets": ("tensorrt",)}, options={"ridge": 1.0}).quantization != both


def test_a_job_survives_its_file_with_its_paths_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = resolve(
        ASKED
        | {
            "checkpoint": "w.pt",
            "model_args": {"depth": 2, "img_size": (32, 64), "qkv_bias": False},
            "preprocess": {"crop_pct": 0.9, "mean": (0.5, 0.5, 0.5)},
            "data": "photos",
            "val": "/elsewhere/val",
            "compare": (Bits(w=3, a=4),),
            "capability": ("8.9",),
            "max_drop": 1.5,
        }
    )
    (tmp_path / "run.json").write_bytes(encode(RunRecord(erq_export="0", job=absolute(asked))))
    monkeypatch.chdir("/")
    again = read_run(tmp_path)
    assert (again.data.data, again.data.val) == (str(tmp_path / "photos"), "/elsewhere/val")
    assert again.model.checkpoint == str(tmp_path / "w.pt")
    assert (again.method, again.evaluate, again.deploy) == (asked.method, asked.evaluate, asked.deploy)
    assert again.model.model_args == asked.model.model_args
    assert encode(RunRecord(erq_export="0", job=again)) == (tmp_path / "run.json").read_bytes()


def test_a_file_of_a_job_that_could_not_be_asked_for_is_refused() -> None:
    text = encode(RunRecord(erq_export="0", job=resolve(ASKED))).replace(b'"calib": 32', b'"calib": 0')
    with pytest.raises(DataError, match=r"run.json, at \$.job.data.calib is 0: expected an integer >= 1"):
        decode(RunRecord, text, source="run.json")


@pytest.mark.parametrize(("largest", "batch"), [(1, (1, 1, 1)), (4, (1, 4, 4)), (32, (1, 8, 32))])
def test_an_engine_is_tuned_for_batch_8_or_what_it_takes(largest: int, batch: tuple[int, int, int]) -> None:
    assert DeploySpec(max_batch=largest).batch == batch


def test_a_job_that_nobody_resolved_has_the_methods_defaults() -> None:
    job = resolve(ASKED)
    assert Job(model=job.model, method=job.method).quantization == job.quantization
