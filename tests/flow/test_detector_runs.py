"""Further runs of detectors from the command line's own function: the cascade, and a folder in COCO's layout."""

from pathlib import Path

import pytest
from coco_folder import turned

from erq_export.backends.tensorrt import available
from erq_export.data.scenes import Scenes
from erq_export.flow import api

RTX = available("tensorrt_rtx") is not None
TARGETS = ["onnx", "tensorrt-rtx"][: 1 + RTX]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
def test_the_cascade_goes_the_same_way(tmp_path: Path, store: Path) -> None:
    """Seven parts: every layer of each in integers, equal to PyTorch's; what is found is what the reference finds, or nearly."""
    pytest.importorskip("faster_coco_eval")
    asked = {"bits": "w4a4", "method": "rtn", "to": TARGETS, "capability": ("8.9",)}
    report = api.run("shapes_cascade", **asked, out=tmp_path, calib=2, val_images=3, store=store)
    assert report.problems == ()
    parts = report.targets["onnx"].parts
    assert list(parts) == ["body", "box.0", "box.1", "box.2", "mask.0", "mask.1", "mask.2", "detector"]
    compared = {name: part.parity for name, part in parts.items() if part.parity is not None}
    assert set(compared) == set(parts) - {"detector"}
    assert all((p.codes.mismatches, p.sums.mismatches) == (0, 0) for p in compared.values())
    assert report.detection is not None
    assert report.detection.exact.box.ap > 30
    if RTX:
        engines = [part.engine for part in report.targets["tensorrt-rtx"].parts.values()]
        assert {how for engine in engines if engine for how in engine.precision.values()} == {"int8"}
        assert len(engines) == len(compared)


def test_a_folder_in_cocos_layout_is_measured_on_and_calibrated_from(tmp_path: Path, store: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    root = tmp_path / "coco"
    Scenes(4, seed=5).write(root, "val2017")
    turned(root, "val2017", {1})
    Scenes(2, seed=6).write(root, "train2017")
    to = TARGETS[-1]  # without the whole detector's graph, which takes longest to trace
    report = api.run(
        "shapes", bits="w8a8", out=tmp_path / "out", to=to, calib=2, coco=str(root), store=store, capability=("8.9",)
    )
    assert report.detection is not None
    assert (report.detection.n_images, report.detection.n_given) == (3, 4)  # one fits on no canvas that was named
    assert report.detection.reference.box.ap == pytest.approx(report.detection.exact.box.ap, abs=15)
