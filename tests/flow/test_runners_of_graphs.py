"""Accuracy is measured in every runner that the machine has: the same graph elsewhere, and engines where their GPU is."""

from pathlib import Path

import pytest
from command_line import write_images
from tiny_vit import TINY, TINY_ARGS

from erq_export.contract.accuracy import Accuracy
from erq_export.flow import measure, shards
from erq_export.flow.begin import begin
from erq_export.flow.job import resolve
from erq_export.flow.measure import Made, accuracy
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT
from erq_export.validate.runners import OnnxRuntimeRunner


def found(root: Path, *, engine: bool) -> Accuracy:
    """Of a tiny ViT; the target's graph stands in for an engine. Weights of 4 bits: of more, pairs of products saturate where the
    CPU has no VNNI (docs/bench.md, "OpenVINO")."""
    for i in range(TINY_ARGS["num_classes"]):
        write_images(root / "val" / str(i), 8)
    given = {"name": TINY, "model_args": TINY_ARGS, "pretrained": False, "bits": "w4a8", "calib": 4, "method": "rtn"}
    given["targets"] = ("onnx", "tensorrt")
    data = {"data": str(write_images(root / "photos", 4)), "val": str(root / "val")}
    with Store.none() as store:
        work = begin(resolve({**given, **data}), SILENT, store)
        bundle = work.stages.bundle(work.model, work.calibration_images(0), work.job.quantization)
        graphs = {name: work.stages.graph(bundle, name, "int8") for name in ("onnx", "tensorrt")}
        engines = {"tensorrt": graphs["onnx"]} if engine else {}
        assert work.held_out is not None
        return accuracy(work, Made(bundle=bundle, graphs=graphs, engines=engines), work.held_out)


def test_openvino_decides_as_onnx_runtime_does(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    graphs = found(tmp_path, engine=False).graphs
    assert list(graphs) == ["onnx", "onnx in openvino", "tensorrt"]
    here, there = graphs["onnx"], graphs["onnx in openvino"]
    assert there.error == pytest.approx(here.error, rel=0.3)  # a rounding here and there moves a code by one
    assert there.cosine == pytest.approx(here.cosine, abs=1e-3)


@pytest.mark.parametrize("here", [False, True], ids=["no GPU", "its GPU"])
def test_an_engine_is_measured_where_it_runs(tmp_path: Path, here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "other_runners", lambda _: [])
    monkeypatch.setattr(measure, "runs_here", lambda _: here)
    monkeypatch.setattr(shards, "engine_runner", lambda path: OnnxRuntimeRunner(path.parent / "model.onnx"))
    graphs = found(tmp_path, engine=True).graphs
    assert list(graphs) == ["onnx", "tensorrt", "tensorrt engine"][: 2 + here]
    if here:
        assert graphs["tensorrt engine"] == graphs["onnx"]
