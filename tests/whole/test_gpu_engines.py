"""What only a GPU can show of engines: they compute what their graph computes, in any batch, captured or not. Not yet run."""

from pathlib import Path

import pytest
import torch
from tiny_vit import random_images, tiny_vit

from erq_export.backends.device import gpu_here
from erq_export.backends.tensorrt import available
from erq_export.contract.bundle import Bundle
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.manifest import MANIFEST
from erq_export.contract.records import encode
from erq_export.contract.targets import TARGETS
from erq_export.exporters.onnx.twin import half_graph
from erq_export.exporters.onnx.write import lowered, marker_graph, save
from erq_export.exporters.tensorrt.build import build
from erq_export.flow import api
from erq_export.flow.engines import engine_runner
from erq_export.validate.runners import OnnxRuntimeRunner

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# The twin: as tests/exporters/test_twin.py has it. Quantized at 4 bits a rounding may change codes: a third was seen between
# two exact runtimes (docs/backends.md, "Parity"), other logits altogether differ by 1.4.
LIMITS = {"twin": 20 * 2.0**-11, "quantized": 0.5}


def can(package: str) -> bool:
    """Is the package here, and does it build for this GPU?"""
    gpu = gpu_here()
    if gpu is None or available(package) is None:
        return False
    return package == "tensorrt" or gpu.capability in RTX_CAPABILITIES


NAMES = [t.name for t in TARGETS.values() if t.package is not None]
ON_GPU = [
    pytest.param(n, marks=pytest.mark.skipif(not can(str(TARGETS[n].package)), reason=f"no GPU that {n} builds for"))
    for n in NAMES
]
pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("target", ON_GPU)]


def built(target: str, folder: Path, bundle: Bundle | None) -> Path:
    """The engine of a bundle's graph, or of the float model's twin, with its record."""
    row, loaded, gpu = TARGETS[target], tiny_vit(), gpu_here()
    assert gpu is not None
    if bundle is None:
        graph, manifest = half_graph(loaded.model, loaded.identity.preprocess.input_size, row)
    else:
        graph, manifest = lowered(marker_graph(bundle), row, None)
    save(graph, folder / "model.onnx")
    (folder / MANIFEST).write_bytes(encode(manifest))
    (folder / "engine").mkdir()
    asked = EngineSpec(batch=(2, 4, 8), capability=(gpu.capability,) if row.ahead_of_time else ())
    package, here = row.package, None if row.ahead_of_time else gpu
    record = build(
        folder / "model.onnx", manifest, folder / "engine", package=package, asked=asked, gpu=here, on_progress=None
    )  # type: ignore[arg-type]
    assert record.problems == ()
    return folder / "engine" / "model.engine"


@pytest.mark.parametrize("kind", ["twin", "quantized"])
def test_an_engine_computes_its_graph_in_any_batch(target: str, kind: str, bundle: Bundle, tmp_path: Path) -> None:
    engine = built(target, tmp_path, None if kind == "twin" else bundle)
    runner, pixels = engine_runner(engine, kernels=tmp_path / "kernels"), random_images(19).pixels
    exact = OnnxRuntimeRunner(tmp_path / "model.onnx").logits(pixels)
    for n in (1, 2, 5, 8, 19):
        found = runner.logits(pixels[:n])
        assert float((found - exact[:n]).norm() / exact[:n].norm()) < LIMITS[kind]
    runner.close()


def test_a_captured_call_computes_the_same(target: str, tmp_path: Path) -> None:
    runner = engine_runner(built(target, tmp_path, None))
    call = runner.prepared(random_images(4).pixels.cuda())
    assert runner.graph in ("own graph", "CUDA graph")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        call()
    end.record()
    runner.synchronize()
    assert start.elapsed_time(end) > 0


@pytest.mark.parametrize("name", ["shapes", "shapes_cascade"])
def test_a_detectors_engines_find_what_its_reference_finds(target: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    gpu = gpu_here()
    assert gpu is not None
    ahead = {"capability": (gpu.capability,)} if TARGETS[target].ahead_of_time else {}
    asked = {"bits": "w8a8", "method": "rtn", "to": target, "calib": 2, "val_images": 20}
    report = api.run(name, **asked, **ahead, out=tmp_path)
    assert report.detection is not None
    assert not any("not run" in line for line in report.not_verified)
    judged, reference = report.detection.graphs[f"{target} engines"], report.detection.reference
    assert reference.box.ap > 30
    # float16 rounds codes otherwise; at 4 bits ONNX Runtime in the engines' place was off by 0.5 and 1.8 points
    assert judged.box.ap == pytest.approx(reference.box.ap, abs=3)
    assert judged.mask.ap == pytest.approx(reference.mask.ap, abs=3)
