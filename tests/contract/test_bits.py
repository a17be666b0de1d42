"""Bits are text in one form: equal settings are equal text, later overrides win, and each must have a layer."""

from fnmatch import fnmatchcase
from itertools import permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erq_export.contract.bits import ACTIVATION_BITS, WEIGHT_BITS, Bits
from erq_export.contract.errors import SpecError
from erq_export.contract.records import decode, encode
from erq_export.contract.spec import DeploySpec, EvaluateSpec, MethodSpec
from erq_export.flow.job import check_pack

PATHS = ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.10.mlp.fc1", "head"]
WORDS = ["*", "head", "blocks.0.*", "blocks.0.mlp.fc1", "*.fc1", "blocks.10.mlp.fc1"]
overrides = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(["w2a4", "w8a8", "w3a5"])), max_size=6)


def text(*parts: tuple[str, str]) -> str:
    return ",".join(["w4a4", *(f"{pattern}={bits}" for pattern, bits in parts)])


@pytest.mark.parametrize("w", WEIGHT_BITS)
@pytest.mark.parametrize("a", ACTIVATION_BITS)
def test_bits_are_read_as_they_are_written(w: int, a: int) -> None:
    bits = Bits(w=w, a=a)
    assert Bits.parse(str(bits)) == Bits.parse(f" W{w}A{a} ") == bits
    assert str(bits) == f"w{w}a{a}"


@pytest.mark.parametrize(
    "words",
    [
        "w1a4",
        "w9a4",
        "w4a2",
        "w4a9",
        "w0a0",
        "w4",
        "a4",
        "4/4",
        "",
        "w4a",
        "w-4a4",
        "w4a4x",
        "w4.0a4",
        "a4w4",
        "w4 a4",
        "w４a４",
        "w٤a٤",
    ],
)
def test_other_bits_are_refused(words: str) -> None:
    with pytest.raises(SpecError, match="--bits") as caught:
        Bits.parse(words)
    assert caught.value.exit_code == 2
    assert "for example --bits w4a" in caught.value.fix


@given(words=st.text(alphabet="wWaA0123456789 /-.", max_size=7))
@example(words="w4a4")
@example(words="w٤a٤")  # digits too, for a regular expression
def test_no_text_makes_bits_fail_otherwise(words: str) -> None:
    try:
        bits = Bits.parse(words)
    except SpecError:
        return
    assert Bits.parse(str(bits)) == bits


@given(overrides)
def test_the_last_override_that_matches_a_path_is_its_setting(parts: list[tuple[str, str]]) -> None:
    bits = Bits.parse(text(*parts))
    for path in PATHS:
        own = ["w4a4", *(bits for pattern, bits in parts if fnmatchcase(path, pattern))]
        assert str(bits.at(path)) == own[-1]


@given(overrides)
def test_text_is_read_as_it_is_written_and_has_one_form(parts: list[tuple[str, str]]) -> None:
    bits = Bits.parse(text(*parts))
    assert str(Bits.parse(str(bits))) == str(bits)
    assert Bits.parse(f" {str(bits).replace('=', ' = ').replace(',', ' , ')} ") == bits
    assert hash(Bits.parse(text(*parts))) == hash(bits)


def test_orders_that_mean_the_same_are_one_text_and_others_are_not() -> None:
    literal = [("head", "w8a8"), ("blocks.0.mlp.fc1", "w2a4"), ("patch_embed.proj", "w3a4")]
    assert len({str(Bits.parse(text(*order))) for order in permutations(literal)}) == 1
    same = [("blocks.0.*", "w8a8"), ("*.fc1", "w8a8"), ("head", "w2a4")]
    assert len({str(Bits.parse(text(*order))) for order in permutations(same[:2])}) == 1
    one, other = text(("*", "w2a4"), ("head", "w8a8")), text(("head", "w8a8"), ("*", "w2a4"))
    assert Bits.parse(one) != Bits.parse(other)
    assert str(Bits.parse(text(("head", "w2a4"), ("*.fc1", "w3a4"), ("head", "w8a8")))) == text(
        ("*.fc1", "w3a4"), ("head", "w8a8")
    )


def test_plain_bits_are_what_they_were() -> None:
    bits = Bits(w=4, a=4)
    assert (str(bits), repr(bits), bits.brief, bits.base) == ("w4a4", "Bits(w=4, a=4)", "w4a4", bits)
    assert decode(MethodSpec, encode(MethodSpec(bits=bits)), source="here").bits == bits
    mixed = Bits.parse("w4a4,head=w8a8")
    assert decode(MethodSpec, encode(MethodSpec(bits=mixed)), source="here").bits == mixed
    assert b'"bits": "w4a4,head=w8a8"' in encode(MethodSpec(bits=mixed))
    assert EvaluateSpec(compare=(mixed,)).compares


def test_many_overrides_are_counted() -> None:
    assert Bits.parse("w4a4,head=w8a8").brief == "w4a4,head=w8a8"
    assert Bits.parse(text(*((path, "w8a8") for path in PATHS))).brief == "w4a4 with 5 overrides"


@pytest.mark.parametrize(
    "words",
    [
        *(
            "w4a4,",
            "w4a4,head",
            "w4a4,head=",
            "w4a4,=w8a8",
            "w4a4,head=w9a8",
            "w4a4,head=w8",
            "w4a4,he ad=w8a8",
            "head=w8a8",
        ),
        *("w4a4,head=w8a8=w4a4", "w4a4,hëad=w8a8", f"w4a4,{'x' * 201}=w8a8", "w4a4" + ",head=w8a8" * 2001),
    ],
)
def test_other_forms_are_refused(words: str) -> None:
    with pytest.raises(SpecError, match="--bits") as caught:
        Bits.parse(words)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("hed=w8a8", "head"),
        ("blocks.0.atn.*=w8a8", "blocks.0.attn.qkv"),
        ("block.10.mlp.fc1=w8a8", "blocks.10.mlp.fc1"),
    ],
)
def test_an_override_without_a_layer_names_the_nearest_one(words: str, near: str) -> None:
    with pytest.raises(SpecError, match="no layer") as caught:
        Bits.parse(f"w4a4,{words}").check(PATHS)
    assert near in caught.value.fix


def test_an_override_that_has_a_layer_is_right() -> None:
    Bits.parse(text(*((word, "w8a8") for word in WORDS))).check(PATHS)


def test_weights_are_packed_where_some_layer_can_be() -> None:
    for words in ("w4a4", "w4a4,head=w8a8", "w8a8,head=w4a8"):
        check_pack(DeploySpec(pack="int4"), Bits.parse(words))
    with pytest.raises(SpecError, match="do not fit 4"):
        check_pack(DeploySpec(pack="int4"), Bits.parse("w8a8,head=w5a8"))
