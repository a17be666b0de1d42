"""The detector as one function finds what the detector of parts finds: the same boxes but for the last bit of a coordinate."""

from pathlib import Path

import pytest
import torch
from published_detector import framed, toy_detector

from erq_export.models.detectors.whole import Whole


@pytest.mark.parametrize("cascade", [False, True])
def test_it_finds_what_the_parts_find(tmp_path: Path, cascade: bool) -> None:
    detector = toy_detector(tmp_path, cascade=cascade)
    for seed in (1, 2):
        one = framed(seed=seed)
        wanted = detector(one)
        boxes, labels, scores, masks = Whole(detector)(one.pixels, torch.tensor(one.size))
        assert len(boxes) > 0
        assert torch.allclose(boxes, wanted.boxes * one.scale, rtol=0, atol=1e-3)
        assert torch.equal(labels, wanted.labels)
        assert torch.allclose(scores, wanted.scores, rtol=0, atol=1e-5)
        assert torch.allclose(masks, wanted.masks, rtol=0, atol=1e-4)


def test_a_picture_without_anything_gives_nothing(tmp_path: Path) -> None:
    detector = toy_detector(tmp_path, cascade=False)
    classes = detector.box[0].get_submodule("predictor.cls_score")
    assert isinstance(classes, torch.nn.Linear)
    classes.bias[0] += 100  # all is background
    found = Whole(detector)(framed().pixels, torch.tensor(framed().size))
    assert [tuple(y.shape) for y in found] == [(0, 4), (0,), (0,), (0, 28, 28)]
