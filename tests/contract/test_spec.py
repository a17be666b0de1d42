"""Specs are checked at birth, say what to type instead, and survive JSON."""

import math
from typing import Any

import pytest
from asked import asked

from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.methods.gptq import GptqOptions
from erq_export.calibrate.methods.method import method_named, options_of, shared_options
from erq_export.calibrate.published.papers import PAPERS, all_of, paper_named, published
from erq_export.contract.errors import ErqError, SpecError
from erq_export.contract.records import hints
from erq_export.contract.registry import METHODS, nearest, resolve
from erq_export.contract.spec import (
    Bits,
    DataSpec,
    DeploySpec,
    EvaluateSpec,
    MethodSpec,
    ModelSpec,
)
from erq_export.contract.targets import TARGETS, deployable, grid_rules, named
from erq_export.flow.job import check_pack
from erq_export.models.aliases import paper_ridge

W4A4 = Bits(w=4, a=4)


def test_the_paper_is_the_default() -> None:
    """ERQ section 5: T = 100, 32 images. Its λ = 1e4 (DeiT-T 1e3) is the presets'; the default is found from the images."""
    assert (ErqOptions().ridge, ErqOptions().flips, DataSpec().calib) == ("auto", 100, 32)
    assert (paper_ridge("vit_s"), paper_ridge("deit_t"), paper_ridge("vit_giant_patch14_224")) == (1e4, 1e3, 1e4)
    assert MethodSpec(bits=W4A4).method == "erq"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MethodSpec(bits=W4A4, method="erg"), "did you mean erq"),
        (lambda: DeploySpec(targets=("onxx",)), "did you mean onnx"),
        (lambda: DeploySpec(targets=("onnx", "tensorrt-rtz")), "did you mean tensorrt-rtx"),
        (lambda: DeploySpec(targets=()), "--to onnx"),
        (lambda: DeploySpec(attention="papr"), "did you mean paper"),  # type: ignore[arg-type]
        (lambda: DeploySpec(pack="int3"), "int"),  # type: ignore[arg-type]
        (lambda: DeploySpec(max_batch=0), "at least 1"),
        (lambda: DataSpec(calib=0), "at least 1"),
        (lambda: DataSpec(calib=2**70), "at least 1"),
        (lambda: DataSpec(calib=True), "at least 1"),
        (lambda: DataSpec(seed=-1), "0 to"),
        (lambda: DataSpec(seed=2**63), "0 to"),
        (lambda: DataSpec(val_images=-1), "at least 0"),
        (lambda: EvaluateSpec(seeds=0), "at least 1"),
        (lambda: EvaluateSpec(max_drop=math.nan), "points"),
        (lambda: EvaluateSpec(max_drop=math.inf), "points"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_a_way_out(make: Any, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert says in caught.value.fix
    assert caught.value.exit_code == 2
    assert str(caught.value) == f"{caught.value.problem}\n  fix: {caught.value.fix}"


@pytest.mark.parametrize(
    ("method", "option", "value", "says"),
    [
        ("erq", "rounding", "flop", "did you mean flip"),
        ("erq", "ridge", 0.0, "positive"),
        ("erq", "ridge", -1.0, "positive"),
        ("erq", "ridge", math.nan, "positive"),
        ("erq", "ridge", math.inf, "positive"),
        ("erq", "ridge", "large", "positive"),
        ("erq", "head_ridge", math.inf, "positive"),
        ("erq", "flips", -1, "0 or more"),
        ("erq", "flips", 10**30, "0 or more"),
        ("erq", "row_steps", -1, "0 or more"),
        ("erq", "mipq_columns", 0, "1 to 20"),
        ("erq", "mipq_columns", 21, "1 to 20"),
        ("erq", "mipq_seconds", 0.0, "positive"),
        ("erq", "mipq_seconds", math.inf, "positive"),
        ("erq", "zero_points", "means", "did you mean mean"),
        ("erq", "patch_input", "flot", "did you mean float"),
        ("erq", "inputs", "flaot", "did you mean float"),
        ("erq", "input_ranges", "quantised", "did you mean quantized"),
        ("erq", "weight_percentiles", "wider", "did you mean wide"),
        ("erq", "attention_bits", 9, "3 to 8"),
        ("gptq", "damping", 0.0, "positive"),
        ("gptq", "damping", math.nan, "positive"),
        ("gptq", "damping", math.inf, "positive"),
        ("gptq", "block", 0, "at least 1"),
        ("gptq", "order", "actvation", "did you mean activation"),
        ("erq", "rigde", 1.0, "did you mean ridge"),
        ("erq", "damping", 0.1, "--method gptq"),
        ("rtn", "ridge", 1.0, "--method erq"),
        ("repq", "inputs", "float", "--method erq or --method gptq"),
    ],
)
def test_a_methods_option_is_refused_likewise(method: str, option: str, value: Any, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        options_of(method, {option: value})
    assert says in caught.value.fix
    assert f"-O {option}" in caught.value.problem or option in caught.value.problem


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("ridge", "1e3", 1000.0),
        ("flips", "7", 7),
        ("dual", "true", True),
        ("head_ridge", "2", 2.0),
        ("rounding", "unit", "unit"),
    ],
)
def test_words_of_a_command_line_are_read_in_the_options_own_type(option: str, text: str, value: Any) -> None:
    found = getattr(options_of("erq", {option: text}, typed=True), option)
    assert (found, type(found)) == (value, type(value))
    if not isinstance(value, str):
        with pytest.raises(SpecError):
            options_of("erq", {option: text})  # words are no numbers where nobody typed them


@pytest.mark.parametrize("text", ["١", "７", "1_000", "0x10", "", " 7", "7.5", "true"])
def test_only_plain_digits_make_an_integer(text: str) -> None:
    with pytest.raises(SpecError):
        options_of("erq", {"flips": text}, typed=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_option_has_a_meaning_and_its_default_is_allowed(method: str) -> None:
    options = method_named(method).options
    assert options_of(method, all_of(options())) == options()
    for name, rule in hints(options).items():
        assert rule.__metadata__[0].description, name


def test_a_comparison_shares_what_both_methods_know() -> None:
    erq = ErqOptions(ridge=5.0, inputs="quantized", weight_percentiles="repq", fold_reduction=False)
    gptq = shared_options("gptq", erq)
    assert gptq == GptqOptions(
        inputs="quantized", weight_percentiles="repq", fold_reduction=False, class_weight="root", rotate="auto"
    )
    assert shared_options("erq", erq) == erq
    assert all_of(shared_options("rtn", erq))["weight_percentiles"] == "repq"


def test_specs_do_not_change_and_are_keyword_only() -> None:
    with pytest.raises(AttributeError):
        ErqOptions().ridge = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelSpec("vit_s")  # type: ignore[call-arg]


@pytest.mark.parametrize("names", [("onnx",), ("tensorrt",), ("tensorrt-rtx",), tuple(TARGETS)])
def test_rules_are_those_of_all_targets_together(names: tuple[str, ...]) -> None:
    """Adding a target only takes freedom away."""
    rules, rows = grid_rules(names), [named(n) for n in deployable(names)]
    assert rules.half_scales == ("float16" in {t.carrier for t in rows})
    assert rules.offset_8bit == ({t.container for t in rows} == {"uint8"})
    assert DeploySpec(targets=names).rules == rules
    assert grid_rules(tuple(reversed(names))) == rules


def test_a_simulated_target_has_no_rules_of_its_own() -> None:
    alone = grid_rules(["reference"])
    assert not alone.holds_zero
    assert not alone.half_scales
    assert alone.offset_8bit
    for names in (("onnx",), ("tensorrt-rtx",), ("onnx", "tensorrt")):
        assert grid_rules(("reference", *names)) == grid_rules(names)
        assert deployable((*names, "reference")) == names


def test_the_published_attention_is_what_reference_alone_is_for() -> None:
    assert DeploySpec(targets=("reference",)).precision == "paper"
    assert DeploySpec(targets=("reference", "onnx")).precision == DeploySpec().precision == "fp16"
    assert DeploySpec(targets=("reference",), attention="fp16").precision == "fp16"


@pytest.mark.parametrize("paper", PAPERS)
def test_a_preset_is_a_legal_setting_of_reference(paper: str) -> None:
    """Every value is one that the method knows, the bits stay those of the run, and so does a λ that is a number."""
    base = asked("w4a4", ("reference", "onnx"), ridge=7.0)
    preset = published(base, paper, ridge=1e3)
    assert (preset.options["ridge"], preset.bits, preset.method) == (7.0, base.bits, "erq")
    assert published(asked("w4a4", ("reference", "onnx")), paper, ridge=1e3).options["ridge"] == 1e3
    assert (preset.rules, preset.attention) == (grid_rules(["reference"]), paper_named(paper).attention)
    assert {name: preset.options[name] for name in PAPERS[paper].options} == PAPERS[paper].options
    with pytest.raises(SpecError, match="icmll") as caught:
        paper_named("icmll")
    assert "did you mean icml" in caught.value.fix


def test_weights_too_wide_to_be_packed() -> None:
    check_pack(DeploySpec(pack="int4"), W4A4)
    check_pack(DeploySpec(), Bits(w=5, a=8))
    with pytest.raises(SpecError, match="w5a8: 5 bits") as caught:
        check_pack(DeploySpec(pack="int4"), Bits(w=5, a=8))
    assert "--pack int8" in caught.value.fix


@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_the_table_is_the_one_it_names(method: str) -> None:
    assert resolve("method", method, METHODS).name == method


def test_a_name_like_no_other_is_answered_with_all_there_are() -> None:
    with pytest.raises(SpecError) as caught:
        resolve("method", "zzzzzz", METHODS)
    assert caught.value.fix == f"one of: {', '.join(sorted(METHODS))}"
    assert nearest("erqq", METHODS, n=1) == ["erq"]


def test_percentile_grids_of_the_options_are_those_there_are() -> None:
    from erq_export.calibrate.percentiles import INPUTS, WEIGHTS
    from erq_export.contract.records import choices

    assert set(choices(hints(ErqOptions)["weight_percentiles"])) == set(WEIGHTS)
    assert set(choices(hints(ErqOptions)["input_percentiles"])) == set(INPUTS)


def test_refinements_of_the_options_are_those_there_are() -> None:
    from erq_export.calibrate.solve import rounding
    from erq_export.calibrate.solve.erq import refinement
    from erq_export.contract.records import choices

    known = choices(hints(ErqOptions)["rounding"])
    assert set(known) == {*rounding.REFINEMENTS, "mipq", "unit"}
    for name in known:
        rule = refinement(ErqOptions(rounding=name))  # type: ignore[arg-type]
        assert rule is rounding.REFINEMENTS.get(name, rule)


def test_every_error_has_its_own_meaning() -> None:
    kinds = ErqError.__subclasses__()
    assert {k.exit_code for k in kinds} == {2, 3, 4, 5, 6, 7}
    assert all(k("x", fix="y").fix == "y" for k in kinds)
