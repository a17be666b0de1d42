"""ImageNet's development kit: its class numbers become the models' outputs, which follow the sorted names of the synsets."""

from pathlib import Path

import numpy as np
import pytest
from command_line import write_images
from scipy.io import savemat

from erq_export.contract.errors import DataError
from erq_export.contract.spec import DataSpec
from erq_export.data.devkit import META, TRUTH, read_devkit
from erq_export.data.images import ImageFolder
from erq_export.data.sources import validation_source

CLASSES = {1: "n03", 2: "n01", 3: "n02"}  # class number → synset, in another order than the outputs 0, 1, 2
ABOVE = {4: "n00"}  # has classes below it, so it is none itself


def devkit(root: Path, truth: str = "3\n1\n2\n2\n") -> Path:
    folder = root / "ILSVRC2012_devkit_t12"
    (folder / "data").mkdir(parents=True)
    rows = [(n, w, "words", "gloss", n in ABOVE) for n, w in {**CLASSES, **ABOVE}.items()]
    fields = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", object),
    ]
    savemat(folder / META, {"synsets": np.array(rows, dtype=fields)[:, None]})
    (folder / TRUTH).write_text(truth)
    return folder


def numbered(folder: Path, n: int) -> Path:
    write_images(folder, n)
    for i in range(n):
        (folder / f"{i}.png").rename(folder / f"ILSVRC2012_val_{i + 1:08d}.PNG")
    return folder


def test_images_by_number_have_the_outputs_of_sorted_synsets(tmp_path: Path) -> None:
    val = numbered(tmp_path / "val", 4)
    source = validation_source("vit_s", DataSpec(val=str(val), class_map=str(devkit(tmp_path))))
    assert source is not None
    assert source.labels == (1, 2, 0, 0)  # n02, n03, n01, n01


def test_folders_of_synsets_are_known_too(tmp_path: Path) -> None:
    for synset in ("n03", "n01"):
        write_images(tmp_path / "val" / synset, 1)
    found = ImageFolder(tmp_path / "val", labelled=True, class_map=devkit(tmp_path))
    assert found.labels == (0, 2)


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00000005", "ILSVRC2012_val_00000000", "cat"])
def test_an_image_that_the_kit_does_not_know_is_named(tmp_path: Path, name: str) -> None:
    val = write_images(tmp_path / "val", 1)
    (val / "0.png").rename(val / f"{name}.png")
    with pytest.raises(DataError, match=name):
        ImageFolder(val, labelled=True, class_map=devkit(tmp_path))


@pytest.mark.parametrize("truth", ["3\n4\n", "3\nn02\n", "3\n9\n"], ids=["a class above", "no number", "no class"])
def test_a_truth_of_other_classes_is_refused(tmp_path: Path, truth: str) -> None:
    with pytest.raises(DataError, match="no list of the kit's class numbers"):
        read_devkit(devkit(tmp_path, truth))


@pytest.mark.parametrize("missing", [META, TRUTH])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = devkit(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(DataError, match=Path(missing).name):
        read_devkit(folder)


@pytest.mark.parametrize("damaged", [b"", b"MATLAB 5.0 MAT-file", b"\0" * 200])
def test_a_damaged_mat_file_is_refused(tmp_path: Path, damaged: bytes) -> None:
    folder = devkit(tmp_path)
    (folder / META).write_bytes(damaged)
    with pytest.raises(DataError, match="synsets"):
        read_devkit(folder)
