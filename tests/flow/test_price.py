"""The way from the published scheme to what is deployed: one choice a row, and the ends are what they are called."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Erq, start
from msgspec import structs

from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.published.papers import PAPERS, published
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import SpecError
from erq_export.contract.records import read
from erq_export.contract.report import Report
from erq_export.contract.spec import Bits
from erq_export.data.calibration_set import calibration_set
from erq_export.data.digits import Digits
from erq_export.flow.ablation import price, steps
from erq_export.flow.begin import begin
from erq_export.flow.compare import layer_error
from erq_export.flow.job import Job, resolve
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT
from erq_export.models.aliases import paper_ridge
from erq_export.models.loading import load
from erq_export.models.rebuild import reference_model

QUICK = ["--bits", "w4a4", "--calib", "16", "--seeds", "1", "--val-images", "60", "--compare", "w4a4"]


def wanted(options: dict[str, Any] | None = None, **changes: Any) -> Job:
    """`changes` of the job's fields, `options` of its method."""
    given: dict[str, Any] = {
        "name": "demo",
        "bits": Bits(w=4, a=4),
        "targets": ("reference", "onnx", "tensorrt-rtx"),
        "seeds": 1,
    }
    return resolve(given | changes, options=options)


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize(
    ("changes", "options"),
    [({}, {}), ({"attention": "int8"}, {"attention_bits": 7}), ({"method": "gptq"}, {"block": 3})],
)
@pytest.mark.parametrize("has_reduction", [True, False])
def test_the_first_row_is_the_papers_and_the_last_is_deployed(
    paper: str, changes: dict[str, Any], options: dict[str, Any], has_reduction: bool
) -> None:
    """Between them each row keeps what the rows above chose."""
    job = wanted(options, **changes)
    rows = steps(job, paper, has_reduction=has_reduction)
    assert rows[-1].spec == job.quantization
    start = published(job.quantization, paper, ridge=paper_ridge(job.model.name))
    if has_reduction:
        assert rows[0].spec == start
    names = [name for row in rows for name in row.options]
    assert len(names) == len(set(names))
    so_far: dict[str, Any] = {}
    for row in rows:
        now = structs.asdict(row.spec) | row.spec.options
        assert all(now[name] == value for name, value in (so_far | row.options).items())
        so_far |= row.options
    assert all(row.options for row in rows[1:])
    assert ("fold_reduction" in names) == (paper == "tpami" and has_reduction)
    assert len({row.change for row in rows}) == len(rows)


def test_what_cannot_be_deployed_is_gone_before_the_targets_rules_come() -> None:
    changes = [row.change for row in steps(wanted(attention="int8"), "tpami", has_reduction=True)]
    at = changes.index("scales and ranges legal on onnx and tensorrt-rtx")
    assert changes[:at] == [
        "the published scheme (tpami)",
        "zero points rounded to integers",
        "one grid a weight row",
        "the image in 8 bits",
        "q, k, v and softmax uniform at 8 bits",
        "the LayerNorm of reduction folded",
    ]


def test_another_paper_is_refused() -> None:
    with pytest.raises(SpecError, match="icnl"):
        steps(wanted(), "icnl", has_reduction=False)


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a graph and the reference beside it."""
    out = tmp_path_factory.mktemp("price") / "out"
    process = start("demo", *QUICK, "--to", "reference", "--to", "onnx", "--out", out)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    (out.parent / "said.txt").write_text(said)
    return out


def test_the_price_of_the_demo_ends_at_the_deployed_bundle(priced: Path) -> None:
    """Same seed, same images: the last row's figures are the run's own, bit for bit."""
    report = read(Report, priced / "report.json")
    rows, accuracy = report.price, report.accuracy
    assert accuracy is not None
    assert rows[0].change == "the published scheme (icml)"
    assert accuracy.reference.top1 is not None
    assert rows[-1].top1.all == (accuracy.reference.top1.value,)
    assert rows[-1].layer_error.all == (layer_error(Bundle.load(priced / "bundle")),)
    assert all(row.logits_error.mean > 0 for row in rows)
    # Every choice changes something, but ONNX Runtime's rules: the demo's ranges hold 0, and its scales need not be exact;
    # and another basis, which promises it nothing.
    errors = {row.change: row.logits_error.mean for row in rows if not row.change.startswith(("scales", "streams"))}
    assert len(set(errors.values())) == len(rows) - 2
    assert rows[-1].logits_error.mean < rows[0].logits_error.mean
    assert Bundle.load(priced / "bundle").operands == {}
    assert {"onnx"} == set(report.targets)
    assert not (priced / "reference").exists()


def test_the_price_is_told_where_people_look(priced: Path, erq: Erq) -> None:
    for text in (
        (priced / "report.md").read_text(),
        (priced.parent / "said.txt").read_text(),
        erq("inspect", priced)[1],
    ):
        assert "From the published scheme to what is deployed" in text
        assert "zero points rounded to integers" in text
        assert "reference: from the published scheme (icml) to what is deployed, top-1 goes from" in text


def test_without_labelled_images_the_price_is_told_in_logits_on_those_of_the_calibration() -> None:
    """The last row anew by hand: the deployed bundle's logits against the float model's, on the images it was made with."""
    job, images, cpu = wanted(calib=4, targets=("reference", "onnx")), Digits("train"), torch.device("cpu")
    work = replace(begin(job, SILENT, Store.none()), held_out=None)
    rows = price(work, None)
    loaded = load(job.model, seed=0)
    data = calibration_set(images, loaded.identity.preprocess, n=4, seed=0)
    with torch.inference_mode():
        exact = loaded.model(data.pixels)
        bundle = calibrate(loaded, data, job.quantization, device=cpu, progress=lambda *_: None)
        found = reference_model(bundle)(data.pixels)
    assert rows[-1].logits_error.all == (pytest.approx(float((found - exact).norm() / exact.norm()), rel=1e-5),)
    assert rows[-1].layer_error.all == (layer_error(bundle),)
    assert all(row.top1 is None for row in rows)
    assert len(rows) > 5


def test_reference_alone_is_measured_and_exports_nothing(erq: Erq, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = erq("demo", *QUICK, "--to", "reference", "--published", "tpami", "-O", "flips=7", "--out", out)
    assert code == 0, said
    spec = Bundle.load(out / "bundle").spec
    assert {name: spec.options[name] for name in PAPERS["tpami"].options} == PAPERS["tpami"].options
    assert (spec.options["flips"], spec.options["ridge"]) == (7, 100.0)  # what was typed, and the demo's own
    assert {p.name for p in out.iterdir()} - {"report.svg"} == {
        "run.json",
        "manifest.json",
        "bundle",
        "report.json",
        "report.md",
        "report.html",
    }
    report = read(Report, out / "report.json")
    assert report.accuracy is not None
    assert report.accuracy.graphs == {}
    assert report.accuracy.reference.top1 is not None
    assert report.accuracy.reference.top1.value > 80
    assert (report.targets, report.price) == ({}, ())
    assert [row.method for row in report.comparison] == ["rtn", "erq"]
    assert "simulated in PyTorch; no graph was written" in said
    for command in (["validate", out], ["inspect", out]):
        assert erq(*command)[0] == 0
    for words, problem in (
        (["build", out], "calibrated for reference alone"),
        (["build", out, "--to", "onnx"], "calibrated for reference alone"),
    ):
        code, said = erq(*words)
        assert code == 2
        assert problem in said
        assert "--to onnx" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "onnx", "--published", "icml"], ("--published icml", "--to reference")),
        (["--to", "reference", "--published", "icnl"], ("icnl", "did you mean icml")),
        (["--to", "onnx", "-O", "dual=true"], ("-O dual=true cannot be deployed to onnx", "--to reference alone")),
        (
            ["--to", "reference", "--to", "onnx", "--attention", "paper"],
            ("--attention paper cannot be deployed to onnx",),
        ),
        (["--to", "reference", "--method", "rtn", "-O", "dual=true"], ("-O dual changes nothing with --method rtn",)),
        (["--to", "refrence"], ("did you mean reference",)),
    ],
    ids=lambda value: " ".join(value)[:50],
)
def test_refusals(erq: Erq, tmp_path: Path, words: list[str], says: tuple[str, ...]) -> None:
    code, said = erq("demo", *QUICK, *words, "--out", tmp_path / "out")
    assert code == 2, said
    assert all(text in said for text in says), said
    assert not (tmp_path / "out").exists()


def test_nothing_is_built_for_reference(erq: Erq, priced: Path) -> None:
    code, said = erq("build", priced, "--to", "reference")
    assert code == 2
    assert "nothing can be built for reference" in said
