"""What --pack int4 costs and saves: python benchmarks/packing.py [--model vit_s] [--bits w4a4] [--out FOLDER].

A full-size model with random weights, calibrated once for packing; the same integers are then written in both forms, so that
nothing but the packing differs. Times are CPU seconds of one thread (the engine builder's own threads are added up), which
a shared machine does not distort. Nothing is executed on a GPU: of TensorRT-RTX the compiled plan is read.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sheet
import torch

from erq_export.backends.tensorrt import build_engine
from erq_export.contract.records import plain_of
from erq_export.contract.spec import Pack
from erq_export.exporters.tensorrt.plan import compiled, summarize
from erq_export.flow import page
from erq_export.flow.artifacts import read_manifest
from erq_export.flow.job import resolve
from erq_export.flow.sweep import Calibrated, sweep
from erq_export.validate.latency import measure_latency
from erq_export.validate.parity.executed import INTEGER_GEMMS, executed_ops
from erq_export.validate.runners import OnnxRuntimeRunner

PACKS: tuple[Pack, ...] = ("int8", "int4")
CAPABILITIES = ("8.6", "12.0")
LOADS = 5


def on_onnx_runtime(paths: Mapping[Pack, Path], pixels: torch.Tensor) -> dict[str, dict[str, Any]]:
    """Loading, one image's latency in turns, and how many layers are integer products."""
    loads: dict[str, float] = {}
    for pack, path in list(paths.items()) * LOADS:
        start = time.process_time()
        OnnxRuntimeRunner(path, threads=1)
        loads[pack] = min(loads.get(pack, float("inf")), time.process_time() - start)
    runners = [OnnxRuntimeRunner(path, threads=1, name=pack) for pack, path in paths.items()]
    found = measure_latency(runners, pixels, threads=1, clock=time.process_time)
    return {
        pack: {
            "load_s": loads[pack],
            "p50_ms": found.timings[pack].p50_ms,
            "times_as_fast": found.ratios[pack].median if pack in found.ratios else 1.0,
            "integer_products": sum(n for op, n in executed_ops(path).items() if op in INTEGER_GEMMS),
        }
        for pack, path in paths.items()
    }


def on_tensorrt_rtx(path: Path) -> dict[str, Any]:
    """What the builder makes of a form."""
    start = time.process_time()
    engine = build_engine(path, package="tensorrt_rtx", compute_capabilities=CAPABILITIES)
    plan = plain_of(summarize(compiled(engine)))
    return {"build_s": time.process_time() - start, "engine_bytes": len(engine.blob), **plan}


def measure(c: Calibrated) -> dict[str, dict[str, dict[str, Any]]]:
    """Target → form → what was found."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for target in ("onnx", "tensorrt-rtx"):
        graphs = {pack: c.stages.graph(c.artifact, target, pack) for pack in PACKS}
        paths = {pack: graph.folder / "model.onnx" for pack, graph in graphs.items()}
        if target == "onnx":
            found = on_onnx_runtime(paths, c.data.pixels[:1])
        else:
            found = {pack: on_tensorrt_rtx(path) for pack, path in paths.items()}
        for pack, path in paths.items():
            found[pack] |= {"file_bytes": path.stat().st_size, **plain_of(read_manifest(graphs[pack]).bytes)}
        rows[target] = found
        print(target, found, flush=True)
    return rows


def main() -> None:
    words = sheet.words(__doc__, {"model": "vit_s", "bits": "w4a4"})
    with tempfile.TemporaryDirectory() as folder, sheet.opened(words) as store:
        given = {"name": words.model, "pretrained": False, "data": sheet.noise(Path(folder), 2), "calib": 2}
        given |= {"bits": words.bits, "method": "rtn", "pack": "int4", "targets": ("onnx", "tensorrt-rtx")}
        ((_, [rows]),) = sweep([({"model": words.model}, resolve(given | {"device": "cpu"}))], measure, store=store)
    report = {"model": words.model, "bits": words.bits, "targets": rows, "capabilities": CAPABILITIES}
    sheet.write(words, "packing", report | {"machine": page.machine("onnxruntime-gpu", "tensorrt-rtx-cu13")})


if __name__ == "__main__":
    sheet.start(main, threads=1)
