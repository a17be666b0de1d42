"""Specs are checked at birth, say what to type instead, and survive JSON."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erq_export.calibrate.published.papers import PUBLISHED, published, settings
from erq_export.contract.errors import ErqError, SpecError
from erq_export.contract.registry import METHODS, nearest, resolve
from erq_export.contract.spec import (
    ACTIVATION_BITS,
    REFINEMENTS,
    WEIGHT_BITS,
    WEIGHT_PERCENTILES,
    Bits,
    ModelSpec,
    QuantSpec,
)
from erq_export.contract.targets import TARGETS, deployable, grid_rules, named

W4A4 = Bits(w=4, a=4)


def spec(**changes: Any) -> QuantSpec:
    defaults: dict[str, Any] = {"bits": W4A4, "targets": ("onnx",)}
    return QuantSpec(**defaults | changes)


@pytest.mark.parametrize("w", WEIGHT_BITS)
@pytest.mark.parametrize("a", ACTIVATION_BITS)
def test_bits_are_read_as_they_are_written(w: int, a: int) -> None:
    bits = Bits(w=w, a=a)
    assert Bits.parse(str(bits)) == Bits.parse(f" W{w}A{a} ") == bits
    assert str(bits) == f"w{w}a{a}"


@pytest.mark.parametrize(
    "text",
    ["w1a4", "w9a4", "w4a2", "w4a9", "w0a0", "w4", "a4", "4/4", "", "w4a", "w-4a4", "w4a4x", "w4.0a4", "a4w4", "w4 a4"],
)
def test_other_bits_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--bits") as caught:
        Bits.parse(text)
    assert caught.value.exit_code == 2
    assert "for example --bits w4a" in caught.value.fix


@given(text=st.text(alphabet="wWaA0123456789 /-.", max_size=7))
@example(text="w4a4")
@example(text="w٤a٤")  # digits too, for a regular expression
def test_no_text_makes_bits_fail_otherwise(text: str) -> None:
    try:
        bits = Bits.parse(text)
    except SpecError:
        return
    assert Bits.parse(str(bits)) == bits


def test_the_paper_is_the_default() -> None:
    """ERQ section 5: λ = 1e4, T = 100, 32 images."""
    defaults = spec()
    assert (defaults.method, defaults.ridge, defaults.flips, defaults.calib) == ("erq", 1e4, 100, 32)


def test_a_spec_survives_json() -> None:
    changed = spec(
        bits=Bits(w=3, a=8),
        targets=("reference",),
        method="rtn",
        calib=7,
        seed=3,
        ridge=12.5,
        rounding="paper",
        flips=0,
        head_ridge=3.0,
        row_steps=7,
        pack="int4",
        mipq_columns=12,
        mipq_seconds=0.5,
        gptq_damping=0.1,
        gptq_block=64,
        gptq_order="activation",
        attention="int8",
        attention_bits=5,
        dual=True,
        zero_points="mean",
        patch_input="float",
        fold_reduction=False,
        inputs="quantized",
        input_ranges="quantized",
        weight_percentiles="repq",
    )
    for field in dataclasses.fields(QuantSpec):  # each is put to the test
        assert getattr(changed, field.name) != getattr(spec(), field.name)
    for one in (spec(), changed):
        assert QuantSpec.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_json_with_fields_of_another_version_is_refused() -> None:
    with pytest.raises(SpecError, match="momentum") as caught:
        QuantSpec.from_json(spec().to_json() | {"momentum": 1})
    assert "version" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "erg"}, "did you mean erq"),
        ({"rounding": "flop"}, "did you mean flip"),
        ({"targets": ("onxx",)}, "did you mean onnx"),
        ({"targets": ("onnx", "tensorrt-rtz")}, "did you mean tensorrt-rtx"),
        ({"targets": ()}, "--to onnx"),
        ({"calib": 0}, "at least 1"),
        ({"ridge": 0.0}, "positive"),
        ({"ridge": -1.0}, "positive"),
        ({"ridge": math.nan}, "positive"),
        ({"flips": -1}, "0 or more"),
        ({"mipq_columns": 0}, "1 to 20"),
        ({"mipq_columns": 21}, "1 to 20"),
        ({"mipq_seconds": 0.0}, "positive"),
        ({"mipq_seconds": math.nan}, "positive"),
        ({"mipq_seconds": math.inf}, "positive"),
        ({"gptq_damping": 0.0}, "positive"),
        ({"gptq_damping": math.nan}, "positive"),
        ({"gptq_block": 0}, "at least 1"),
        ({"gptq_order": "actvation"}, "did you mean activation"),
        ({"attention": "papr"}, "did you mean paper"),
        ({"zero_points": "means"}, "did you mean mean"),
        ({"patch_input": "flot"}, "did you mean float"),
        ({"inputs": "flaot"}, "did you mean float"),
        ({"input_ranges": "quantised"}, "did you mean quantized"),
        ({"weight_percentiles": "wider"}, "did you mean wide"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_a_way_out(change: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**change)
    assert says in caught.value.fix
    assert caught.value.exit_code == 2
    assert str(caught.value) == f"{caught.value.problem}\n  fix: {caught.value.fix}"


def test_specs_do_not_change_and_are_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().ridge = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        QuantSpec(W4A4, ("onnx",))  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ModelSpec("vit_s")  # type: ignore[call-arg]


@pytest.mark.parametrize("names", [("onnx",), ("tensorrt",), ("tensorrt-rtx",), tuple(TARGETS)])
def test_rules_are_those_of_all_targets_together(names: tuple[str, ...]) -> None:
    """Adding a target only takes freedom away."""
    rules, rows = grid_rules(names), [named(n) for n in deployable(names)]
    assert rules.half_scales == ("float16" in {t.carrier for t in rows})
    assert rules.offset_8bit == ({t.container for t in rows} == {"uint8"})
    assert spec(targets=names).rules == rules
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
    assert spec(targets=("reference",)).attention == "paper"
    assert spec(targets=("reference", "onnx")).attention == spec().attention == "fp16"
    assert spec(targets=("reference",), attention="fp16").attention == "fp16"


@pytest.mark.parametrize("targets", [("onnx",), ("reference", "tensorrt-rtx")])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention": "paper"}, "--attention paper"),
        ({"dual": True}, "--dual"),
        ({"zero_points": "mean"}, "--zero-points mean"),
        ({"patch_input": "float"}, "--patch-input float"),
    ],
)
def test_what_no_target_can_run_is_refused(targets: tuple[str, ...], change: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(targets=targets, **change)
    assert caught.value.problem.startswith(f"{words} cannot be deployed to {targets[-1]}")
    assert caught.value.fix == f"leave {words} out, or --to reference alone"
    assert spec(targets=("reference",), **change).rules == grid_rules(["reference"])


@pytest.mark.parametrize("paper", PUBLISHED)
def test_a_preset_is_a_legal_setting_of_reference(paper: str) -> None:
    """Every value is one that the spec knows, and the bits, data and λ stay those of the run."""
    base = spec(targets=("reference", "onnx"), ridge=7.0, seed=3, method="rtn")
    preset = published(base, paper)
    assert (preset.ridge, preset.seed, preset.bits, preset.method) == (7.0, 3, base.bits, "erq")
    assert {name: getattr(preset, name) for name in settings(paper)} == settings(paper)
    with pytest.raises(SpecError, match="icmll") as caught:
        settings("icmll")
    assert "did you mean icml" in caught.value.fix


@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_the_table_is_the_one_it_names(method: str) -> None:
    assert resolve("method", method, METHODS).name == method


def test_a_name_like_no_other_is_answered_with_all_there_are() -> None:
    with pytest.raises(SpecError) as caught:
        resolve("method", "zzzzzz", METHODS)
    assert caught.value.fix == f"one of: {', '.join(sorted(METHODS))}"
    assert nearest("erqq", METHODS, n=1) == ["erq"]


def test_percentile_grids_of_the_spec_are_those_there_are() -> None:
    from erq_export.calibrate.solve.weight_grid import PERCENTILES

    assert set(WEIGHT_PERCENTILES) == set(PERCENTILES)


def test_refinements_of_the_spec_are_those_there_are() -> None:
    from erq_export.calibrate.methods.erq import refinement
    from erq_export.calibrate.solve import rounding

    assert set(REFINEMENTS) == {*rounding.REFINEMENTS, "mipq", "unit"}
    for name in REFINEMENTS:
        rule = refinement(spec(rounding=name))
        assert rule is rounding.REFINEMENTS.get(name, rule)


def test_every_error_has_its_own_meaning() -> None:
    kinds = ErqError.__subclasses__()
    assert {k.exit_code for k in kinds} == {2, 3, 4, 5, 6, 7}
    assert all(k("x", fix="y").fix == "y" for k in kinds)
