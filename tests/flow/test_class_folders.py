"""Class folders without a class map: sorted order is the model's order of classes only where every class has a folder."""

from pathlib import Path

import pytest
from command_line import MODEL, QUICK, Erq, write_images
from tiny_vit import TINY, TINY_ARGS

from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError
from erq_export.flow.api import Graph, validate
from erq_export.flow.begin import begin
from erq_export.flow.job import Job, resolve
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT

N_CLASSES = TINY_ARGS["num_classes"]


def job(root: Path, n_folders: int, *, class_map: bool = False) -> Job:
    """A job on images in that many class folders."""
    for i in range(n_folders):
        write_images(root / "val" / f"class_{i:03d}", 1)
    given = {"name": TINY, "model_args": TINY_ARGS, "pretrained": False, "bits": "w4a4", "calib": 4}
    if class_map:
        lines = "".join(f"class_{i:03d} {N_CLASSES - 1 - i}\n" for i in range(n_folders))
        (root / "classes.txt").write_text(lines)
        given["class_map"] = str(root / "classes.txt")
    data = {"data": str(write_images(root / "photos", 4)), "val": str(root / "val")}
    return resolve({**given, **data}, typed=False)


@pytest.mark.parametrize("n", [1, N_CLASSES - 1, N_CLASSES + 1])
def test_another_number_of_folders_is_refused_before_any_work(tmp_path: Path, n: int) -> None:
    with Store.none() as store, pytest.raises(DataError) as caught:
        begin(job(tmp_path, n), SILENT, store)
    assert f"{n} class folders" in caught.value.problem
    assert f"{N_CLASSES} classes" in caught.value.problem
    assert "--class-map FILE" in caught.value.fix


def test_a_folder_for_every_class_is_taken_in_sorted_order(tmp_path: Path) -> None:
    with Store.none() as store:
        work = begin(job(tmp_path, N_CLASSES), SILENT, store)
    assert work.labelled.labels is not None
    assert work.labelled.labels.tolist() == list(range(N_CLASSES))


def test_a_class_map_says_which_classes_two_folders_are(tmp_path: Path) -> None:
    with Store.none() as store:
        work = begin(job(tmp_path, 2, class_map=True), SILENT, store)
    assert work.labelled.labels is not None
    assert work.labelled.labels.tolist() == [N_CLASSES - 1, N_CLASSES - 2]


def test_the_main_job_leaves_no_folder_behind(tmp_path: Path, erq: Erq) -> None:
    for label in ("ant", "bee"):
        write_images(tmp_path / "val" / label, 1)
    data = ["--data", write_images(tmp_path / "photos", 4), "--val", tmp_path / "val"]
    code, said = erq(*MODEL, *QUICK, *data, "--out", tmp_path / "out", "--no-store")
    assert code == 2, said
    assert f"--val has 2 class folders, the model has {N_CLASSES} classes" in said
    assert "fix: --class-map FILE" in said
    assert not (tmp_path / "out").exists()


def test_python_callers_are_refused_with_their_own_fix(tmp_path: Path, bundle: Bundle) -> None:
    write_images(tmp_path / "val" / "ant", 1)
    graph = Graph(target="onnx", path=tmp_path / "model.onnx")
    with pytest.raises(DataError, match=rf"has 1 class folders, the model has {N_CLASSES} classes") as caught:
        validate(bundle, graph, data=tmp_path / "val", store=False)
    assert "loader" in caught.value.fix
