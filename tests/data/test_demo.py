"""The demo's split never leaks, and the weights that ship read the digits they have not seen."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from timm.data.transforms_factory import create_transform

from erq_export.contract.errors import DataError, MachineError
from erq_export.data.digits import Digits
from erq_export.models.demo import DEMO_ARCHITECTURE, DEMO_MODEL_ARGS, DEMO_PREPROCESS, DEMO_WEIGHTS

HELD_OUT_NAMES_SHA256 = "d4d8048c95aec60c87f8ba29ead477aebab5948c19ced652b0eb50a4bf861e77"
SPLITS = Digits("train"), Digits("held_out")


def position(name: str) -> int:
    return int(name.removeprefix("digits/"))


def test_the_split_is_a_partition_of_fixed_size() -> None:
    train, held_out = ([position(split.name(i)) for i in range(len(split))] for split in SPLITS)
    assert (len(train), len(held_out)) == (1200, 597)
    assert sorted(train + held_out) == list(range(1797))


def test_the_split_is_the_one_the_weights_were_trained_on() -> None:
    held_out = " ".join(SPLITS[1].name(i) for i in range(597))
    # Recorded when the weights were trained: a scikit-learn that splits otherwise would test on training images.
    assert hashlib.sha256(held_out.encode()).hexdigest() == HELD_OUT_NAMES_SHA256


def test_the_split_is_stratified() -> None:
    counts = [Counter(split.labels) for split in SPLITS]
    for digit in range(10):
        n = counts[0][digit] + counts[1][digit]
        assert abs(counts[1][digit] - n * Fraction(597, 1797)) < 1  # an exact share, rounded either way


@pytest.mark.parametrize("split", SPLITS, ids=["train", "held_out"])
def test_images_are_the_source_in_grey_levels(split: Digits) -> None:
    source = load_digits()
    for i in range(len(split)):
        image, k = split.image(i), position(split.name(i))
        assert (image.mode, image.size) == ("RGB", (8, 8))
        pixels = np.asarray(image)  # (8, 8, 3)
        assert pixels.dtype == np.uint8
        assert (pixels == pixels[..., :1]).all()
        assert np.abs(pixels[..., 0] - source.images[k] * 255 / 16).max() <= 0.5  # half a grey level: rounding
        assert split.labels[i] == source.target[k]
        assert split.class_names[split.labels[i]] == str(source.target[k])


def test_the_shipped_weights_read_digits_they_have_not_seen() -> None:
    model = timm.create_model(DEMO_ARCHITECTURE, pretrained=False, **DEMO_MODEL_ARGS).eval()
    state = load_file(DEMO_WEIGHTS)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    model.load_state_dict(state, strict=True)
    transform = create_transform(**DEMO_PREPROCESS, is_training=False)
    held_out = SPLITS[1]
    images = torch.stack([transform(held_out.image(i)) for i in range(len(held_out))])  # (597, 3, 32, 32)
    with torch.inference_mode():
        answers = torch.cat([model(batch).argmax(dim=1) for batch in images.chunk(3)])  # (597,)
    top1 = (answers == torch.tensor(held_out.labels)).double().mean().item()
    assert top1 >= 0.97


def test_the_shipped_file_is_small() -> None:
    assert DEMO_WEIGHTS.stat().st_size < 2_000_000


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="no split 'test'") as caught:
        Digits("test")  # type: ignore[arg-type]
    assert "'train' or 'held_out'" in caught.value.fix


def test_without_scikit_learn_the_fix_is_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # None: import raises ImportError
    with pytest.raises(MachineError) as caught:
        Digits("held_out")
    assert caught.value.fix == "pip install 'erq-export[demo]'"


def test_importing_the_demo_loads_no_heavy_package() -> None:
    probe = "import sys, erq_export.data.digits; print(*sorted({'torch', 'sklearn', 'timm', 'numpy', 'PIL'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
