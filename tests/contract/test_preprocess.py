"""Preprocessing that no picture survives is refused when it is asked for."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import value_or_error
from PIL import Image

from erq_export.contract.errors import SpecError
from erq_export.contract.preprocess import CROP_MODES, Preprocess

CONFIG: dict[str, Any] = {
    "input_size": (3, 16, 16),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.25, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(("mean", v) for v in (math.nan, (0.5, math.nan, 0.5), (0.5, math.inf, 0.5), (1e30,) * 3, (10**400,) * 3, "abc")),
        *(("mean", v) for v in ((), (0.5,), (0.5,) * 4, ((0.5,), 0.5, 0.5), (True, 0, 0), None, {"a": 1, "b": 2, "c": 3})),
        *(("std", v) for v in ((1e-30,) * 3, (0, 0, 0), (-1.0,) * 3, (math.inf,) * 3, (1e9,) * 3, (10**400,) * 3)),
        *(("crop_pct", v) for v in (0, -1, 1e-9, 0.01, 1.0001, 7, math.nan, math.inf, True, "0.9", (0.9,), 10**400)),
        *(("input_size", v) for v in (16, (16, 16), (3, 16), (3, 16, 16, 1), (3, 0, 16), (3, -1, 16), (3, 1.0, 16))),
        *(("input_size", v) for v in ((3, 10**9, 10**9), (3, 2**65, 16), "3,16,16", (3, (16,), 16), None, (10**9, 16, 16))),
        *(("interpolation", v) for v in ("bicubik", "", 3, None, ("bicubic",), ["bicubic"])),
        *(("crop_mode", v) for v in ("centre", 1, None, [], {})),
    ],
    ids=lambda v: str(v)[:24] if not isinstance(v, tuple) else "tuple",
)  # fmt: skip
def test_an_absurd_part_is_refused_by_name(part: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"--preprocess {part}") as caught:
        Preprocess.from_config(CONFIG, {part: value})
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("part", ["input_size", "mean", "std", "interpolation", "crop_pct"])
def test_a_configuration_that_lacks_a_part_is_refused(part: str) -> None:
    with pytest.raises(SpecError, match=f"nothing of {part}"):
        Preprocess.from_config({k: v for k, v in CONFIG.items() if k != part}, {})


def test_a_model_of_other_channels_than_an_image_has_is_refused_when_an_image_comes() -> None:
    four = Preprocess.from_config(CONFIG, {"input_size": (4, 16, 16), "mean": (0.5,) * 4, "std": (0.5,) * 4})
    with pytest.raises(SpecError, match="4 channels"):
        four.tensor(Image.new("RGB", (16, 16)))


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    target=st.tuples(st.integers(8, 24), st.integers(8, 24)),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 1.0]),
    mode=st.sampled_from(CROP_MODES),
)
def test_the_size_before_cropping_is_foreseen(
    size: tuple[int, int], target: tuple[int, int], crop_pct: float, mode: str
) -> None:
    """timm's own resizing, its first step, makes no picture larger than was said, to a pixel of rounding a side."""
    from erq_export.contract.preprocess import _transform

    made = Preprocess.from_config(CONFIG, {"input_size": (3, *target), "crop_pct": crop_pct, "crop_mode": mode})
    resize: Any = _transform(made)
    found = resize.transforms[0](Image.new("RGB", size))
    width, height = made.resized(size)
    assert found.width <= width + 1 + width // 20
    assert found.height <= height + 1 + height // 20
    assert np.asarray(made.tensor(Image.new("RGB", size))).shape == (3, *target)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([10**400, 0.5, 224]),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, min_size=3, max_size=3).map(tuple),
    max_leaves=4,
)


@settings(max_examples=400)
@given(overrides=st.dictionaries(st.sampled_from(sorted(CONFIG)) | st.text(max_size=5), junk, max_size=3))
def test_any_override_is_taken_or_refused(overrides: dict[str, Any]) -> None:
    outcome = value_or_error(lambda: Preprocess.from_config(CONFIG, overrides))
    if isinstance(outcome, SpecError):
        assert str(outcome).encode("utf-8", "backslashreplace")
    else:
        assert Preprocess.from_config(json.loads(json.dumps(outcome.to_json())), {}) == outcome
