"""The stand-in's scenes: the same on every machine, told truly, and hard where they are meant to be."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from erq_export.data.coco import CocoSplit
from erq_export.data.runs import from_runs, runs
from erq_export.data.scenes import HEIGHT, MOST, NAMES, VISIBLE, WIDTH, Scene, Scenes, scene

N = 60
DIGEST = "908f09e68b72188a4ddfc5efe3b8c36d734f5d6c0f0f5176c5bf6f8ccb97d496"


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return [scene(i, seed=0) for i in range(N)]


def test_the_same_scenes_are_drawn_everywhere(drawn: list[Scene]) -> None:
    """Another drawing is another data set: then its salt is counted up, and this digest is written down again."""
    seen = hashlib.sha256()
    for one in drawn[:4]:
        seen.update(one.picture.tobytes() + np.packbits(one.masks).tobytes() + bytes(one.labels))
    assert seen.hexdigest() == DIGEST


def test_a_scene_depends_on_seed_and_number_alone() -> None:
    assert (scene(7, seed=0).picture == scene(7, seed=0).picture).all()
    assert (scene(7, seed=0).picture != scene(7, seed=1).picture).any()
    few, later = Scenes(3, seed=0, first=5), Scenes(2, seed=0, first=6)
    assert few.image(1).tobytes() == later.image(0).tobytes()
    assert few.name(1) == later.name(0) == "000006.png"
    assert len({few.fingerprint, later.fingerprint, Scenes(3, seed=1, first=5).fingerprint}) == 3
    assert few.fingerprint == Scenes(3, seed=0, first=5).fingerprint


def test_no_pixel_belongs_to_two_things(drawn: list[Scene]) -> None:
    for one in drawn:
        assert 1 <= len(one.labels) == len(one.masks) <= MOST
        assert one.masks.shape[1:] == one.picture.shape[:2] == (HEIGHT, WIDTH)
        assert int(one.masks.sum(0).max()) == 1
        assert one.masks.any((1, 2)).all()


def test_every_kind_and_size_occurs_and_things_hide_each_other(drawn: list[Scene]) -> None:
    """Sizes of all of COCO's but the large, and each number of things."""
    kinds = Counter(label for one in drawn for label in one.labels)
    assert set(kinds) == set(range(1, len(NAMES) + 1))
    assert min(kinds.values()) > sum(kinds.values()) / 20
    areas = np.array([mask.sum() for one in drawn for mask in one.masks])
    assert (areas < 32**2).mean() > 0.3
    assert (areas >= 32**2).mean() > 0.15
    assert {len(one.labels) for one in drawn} == set(range(1, MOST + 1))
    assert 0 < VISIBLE < 1
    pictures = np.stack([one.picture for one in drawn]).astype(float)
    assert pictures.std((1, 2, 3)).min() > 10


def test_no_map_of_a_swin_is_a_whole_number_of_windows() -> None:
    assert all((side // stride) % 7 for side in (HEIGHT, WIDTH) for stride in (4, 8, 16, 32))


def test_things_stand_out_from_what_is_behind_them(drawn: list[Scene]) -> None:
    """The mean colour inside of most masks is not that of the ring around: else there is nothing to learn."""
    apart = []
    for one in drawn[:20]:
        behind = one.picture[~one.masks.any(0)].mean(0)
        apart += [abs(one.picture[mask].mean(0) - behind).max() for mask in one.masks]
    assert np.median(apart) > 30


def test_a_folder_of_scenes_is_read_as_coco(tmp_path: Path) -> None:
    scenes = Scenes(5, seed=3, first=10)
    scenes.write(tmp_path, "val")
    split = CocoSplit(tmp_path, "val")
    split.check_categories(NAMES)
    assert split.truth() == scenes.truth()
    assert split.truth([1, 4]) == scenes.truth([1, 4])
    assert split.annotated == (0, 1, 2, 3, 4)
    for i in range(5):
        assert split.image(i).tobytes() == scenes.image(i).tobytes()
        assert split.name(i) == scenes.name(i)


def test_annotations_tell_what_is_visible() -> None:
    scenes = Scenes(8, seed=0)
    truth = scenes.truth()
    assert len({thing["id"] for thing in truth["annotations"]}) == len(truth["annotations"])
    for i in range(8):
        things = [thing for thing in truth["annotations"] if thing["image_id"] == i]
        one = scene(i, seed=0)
        assert [thing["category_id"] for thing in things] == list(one.labels)
        for thing, mask in zip(things, one.masks, strict=True):
            assert (from_runs(thing["segmentation"]["counts"], (HEIGHT, WIDTH)) == mask).all()
            x, y, w, h = thing["bbox"]
            assert mask[y : y + h, x : x + w].sum() == mask.sum() == thing["area"]
            for edge in (mask[y, :], mask[y + h - 1, :], mask[:, x], mask[:, x + w - 1]):
                assert edge.any()


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_runs_lead_back_to_their_mask(mask: np.ndarray) -> None:
    lengths = runs(mask)
    assert sum(lengths) == mask.size
    assert all(lengths[1:])  # only the first may be empty: runs begin with zeros
    assert (from_runs(lengths, mask.shape) == mask).all()
    assert lengths[0] == 0 or not mask.ravel(order="F")[0]
