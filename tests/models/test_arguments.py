"""Only what shapes a known architecture reaches timm; whatever else is typed, or stands in a file, is refused by name."""

import math
import pickle
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import value_or_error
from tiny_swin import SWIN_ARGS, TINY_SWIN
from tiny_vit import TINY, TINY_ARGS

from erq_export.contract.errors import ErqError, SpecError
from erq_export.contract.spec import ModelSpec
from erq_export.models.arguments import ARGUMENTS, REFUSED, checked
from erq_export.models.hub import pretrained
from erq_export.models.loading import load
from erq_export.models.names import alias_of, architecture

LEGAL: dict[str, Any] = TINY_ARGS | {
    "mlp_ratio": 2.5,
    "qkv_bias": False,
    "init_values": 1e-5,
    "reg_tokens": 2,
    "global_pool": "avg",
    "act_layer": "gelu_tanh",
    "norm_layer": "layernorm",
}


class Touch:
    """Unpickled, it would create a file: what an attacker's checkpoint does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_shapes_an_architecture_is_taken_as_it_is() -> None:
    assert checked(LEGAL) == LEGAL
    assert checked(SWIN_ARGS) == SWIN_ARGS
    assert checked({"depths": [2, 2], "img_size": [16, 32]}) == {"depths": (2, 2), "img_size": (16, 32)}  # from JSON
    architecture(TINY, LEGAL)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_timm_would_do_more_with_is_refused_with_its_reason(name: str) -> None:
    """Every spelling of the value, also the harmless ones."""
    for value in ("x", True, False, 0, None, {}):
        with pytest.raises(SpecError, match=rf"--model-arg {name}=") as caught:
            architecture(TINY, TINY_ARGS | {name: value})
        assert "is not taken: it " in caught.value.problem
        assert caught.value.fix


def test_the_tables_do_not_overlap_and_cover_the_constructors() -> None:
    """Whatever the three constructors and timm's builder take is known here, one way or the other."""
    import inspect

    import timm
    from timm.models._builder import build_model_with_cfg
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    assert not set(ARGUMENTS) & set(REFUSED)
    for function in (VisionTransformer, SwinTransformer, timm.create_model, build_model_with_cfg):
        names = {p.name for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD}
        assert names - {"self"} <= set(ARGUMENTS) | set(REFUSED), function


@pytest.mark.parametrize("build", [architecture, pretrained])
def test_no_file_of_an_argument_is_ever_read(tmp_path: Path, build: Any) -> None:
    """A pickle that creates a file: timm 1.0.20 ran it, timm 1.0.26 and later read the file all the same."""
    bad, mark = tmp_path / "bad.pth", tmp_path / "it ran"
    bad.write_bytes(pickle.dumps({"x": Touch(mark)}))
    with pytest.raises(SpecError, match="--checkpoint FILE"):
        build(TINY, TINY_ARGS | {"checkpoint_path": str(bad)})
    assert not mark.exists()
    pickle.loads(bad.read_bytes())  # from the other side: it would have
    assert mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "local-dir:/tmp/model",
        "hf-hub:timm/vit_tiny_patch16_224",
        "hf_hub:timm/vit_tiny_patch16_224",
        "LOCAL-DIR:x",
        "timm/vit_tiny_patch16_224",
        "./vit_tiny_patch16_224",
        "..\\vit_tiny_patch16_224",
        "C:vit",
        "x" * 100_000,
        "",
        "vit_tiny_patch16_224\n",
        "vit_tiny_patch16_224.\0",
        "\udcff",
    ],
    ids=lambda name: repr(name)[:24],
)
def test_a_name_that_is_a_place_is_refused(name: str) -> None:
    for find in (alias_of, lambda n: architecture(n, {}), lambda n: pretrained(n, {})):
        with pytest.raises(SpecError) as caught:
            find(name)
        assert len(str(caught.value)) < 1000
    if ":" in name[:12]:
        assert "--checkpoint FILE" in caught.value.fix


WRONG: dict[str, list[Any]] = {
    "img_size": [(32,), 0, -32, 32.0, "32", True, (32, 32, 32), ((32, 32),), 10**30, None, {}, math.nan],
    "patch_size": [0, -1, (4,), (4, 0), 2.5, "four"],
    "num_heads": [0, -3, (), (1,) * 9, (2, "2"), True],
    "embed_dim": [0, 2**63, 2**64 + 1, 10**5000, (32, 64), "32"],
    "num_classes": [-1, 1.0, False, "five"],
    "depth": [0, (2, 2), -1],
    "depths": [2.0, (2, 0), ((2, 2), 2), ()],
    "mlp_ratio": [0, -4.0, math.nan, math.inf, -math.inf, 10**400, True, (4.0,), "4"],
    "init_values": [math.nan, math.inf, 0, -1],
    "qkv_bias": [1, 0, "True", None],
    "window_size": [0, (4, 0), "7", (1.0, 2)],
    "global_pool": ["tokne", 1, ("avg",), None],
    "act_layer": ["geluu", "torch.nn.GELU", 3],
    "norm_layer": ["layernrom", "batchnorm"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n, values in WRONG.items() for v in values],
    ids=lambda v: repr(v)[:20] if not isinstance(v, int) or abs(v) < 2**64 else "huge",
)
def test_a_value_out_of_range_is_refused_as_it_was_typed(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"--model-arg {name}=") as caught:
        checked({name: value})
    assert len(str(caught.value)) < 600
    assert ARGUMENTS[name].says in caught.value.fix


def test_an_unknown_name_meets_its_neighbours() -> None:
    with pytest.raises(SpecError, match="--model-arg embed_dimm=32") as caught:
        checked({"embed_dimm": 32})
    assert "embed_dim" in caught.value.fix
    with pytest.raises(SpecError, match="the bundle's model_args zzz=1") as caught:
        checked({"zzz": 1}, source="the bundle's model_args")
    assert "img_size" in caught.value.fix


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"embed_dim": 33, "num_heads": 2}, "embed_dim=34"),
        ({"depths": (2, 2, 2), "num_heads": (2, 4)}, "each stage"),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_together_are_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        checked(args)
    assert says in caught.value.fix


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, 10**400, 10**6, 10**9])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["avg", "token", "gelu", "learn", "layernorm", "/etc/passwd", "\udcff"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(), inner)
    ),
    max_leaves=4,
)
names = (
    st.sampled_from([*ARGUMENTS, *REFUSED]) | st.text(string.ascii_lowercase + "_", max_size=12) | st.text(max_size=4)
)


@settings(max_examples=500)
@given(args=st.dictionaries(names, values, max_size=3))
def test_any_arguments_are_checked_or_refused(args: dict[str, Any]) -> None:
    outcome = value_or_error(lambda: checked(args))
    if isinstance(outcome, ErqError):
        assert (outcome.exit_code, bool(str(outcome).encode())) == (2, True)  # can be printed and written
    else:
        assert set(outcome) == set(args) <= set(ARGUMENTS)


@settings(max_examples=150)
@given(
    args=st.fixed_dictionaries(
        {}, optional={n: st.integers(0, 9) | st.sampled_from([16, 64, 10**5, 10**6, 10**9]) | values for n in ARGUMENTS}
    ),
    name=st.sampled_from([(TINY, TINY_ARGS), (TINY_SWIN, SWIN_ARGS)]),
)
def test_any_model_is_built_or_refused_before_it_takes_memory(args: dict[str, Any], name: Any) -> None:
    """Through the whole of loading, on the tiny models: with one to three legal or illegal changes."""
    timm_name, base = name
    few = dict(list(args.items())[:3])
    outcome = value_or_error(lambda: load(ModelSpec(name=timm_name, pretrained=False, model_args=base | few), seed=0))
    if isinstance(outcome, ErqError):
        assert outcome.exit_code in (2, 3)
    else:
        with torch.no_grad():
            assert outcome.model(torch.zeros(1, *outcome.identity.preprocess.input_size)).isfinite().all()
