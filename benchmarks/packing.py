"""What --pack int4 costs and saves: python benchmarks/packing.py [--model vit_s] [--bits w4a4] [--out FOLDER].

A full-size model with random weights, calibrated once for packing; the same integers are then written in both forms, so that
nothing but the packing differs. Times are CPU seconds of one thread (the engine builder's own threads are added up), which
a shared machine does not distort. Nothing is executed on a GPU: of TensorRT-RTX the compiled plan is read.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import torch

from erq_export.backends.machine import processor
from erq_export.backends.tensorrt import build_engine
from erq_export.calibrate.loop import calibrate
from erq_export.contract.bundle import Bundle
from erq_export.contract.files import write_json, write_text
from erq_export.contract.records import choices, hints, plain_of
from erq_export.contract.spec import DeploySpec, ModelSpec
from erq_export.contract.targets import named
from erq_export.data.calibration_set import CalibrationSet
from erq_export.exporters.onnx.write import lowered, marker_graph, save
from erq_export.exporters.tensorrt.plan import compiled, summarize
from erq_export.flow.job import resolve
from erq_export.models.loading import load
from erq_export.validate.latency import measure_latency
from erq_export.validate.parity.executed import INTEGER_GEMMS, executed_ops
from erq_export.validate.report.markdown import table
from erq_export.validate.runners import OnnxRuntimeRunner

TARGETS = ("onnx", "tensorrt-rtx")
PACKS = choices(hints(DeploySpec)["pack"])
CAPABILITIES = ("8.6", "12.0")
LOADS = 5
MIB = 2**20


def bundle_of(model: str, bits: str) -> Bundle:
    """Round to nearest on two random images: the integers do not matter here, their grids do."""
    loaded = load(ModelSpec(name=model, pretrained=False), seed=0)
    shape = loaded.identity.preprocess.input_size
    pixels = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    data = CalibrationSet(pixels=pixels, names=("noise/0", "noise/1"), sha256="0" * 64)
    given = {"name": model, "bits": bits, "targets": TARGETS, "method": "rtn", "pack": "int4"}
    return calibrate(loaded, data, resolve(given).quantization, device=torch.device("cpu"), progress=lambda *_: None)


def cpu_s(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def on_onnx_runtime(paths: dict[str, Path], size: tuple[int, int, int]) -> dict[str, dict[str, Any]]:
    """Loading, one image's latency in turns, and how many layers are integer products."""
    loads = {
        pack: min(cpu_s(lambda path=path: OnnxRuntimeRunner(path, threads=1)) for _ in range(LOADS))
        for pack, path in paths.items()
    }
    runners = [OnnxRuntimeRunner(path, threads=1, name=pack) for pack, path in paths.items()]
    found = measure_latency(runners, torch.randn(1, *size), threads=1, clock=time.process_time)
    return {
        pack: {
            "load_s": loads[pack],
            "p50_ms": found.timings[pack].p50_ms,
            "times_as_fast": found.ratios[pack].median if pack in found.ratios else 1.0,
            "integer_products": sum(n for op, n in executed_ops(path).items() if op in INTEGER_GEMMS),
        }
        for pack, path in paths.items()
    }


def on_tensorrt_rtx(paths: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What the builder makes of both forms."""
    rows = {}
    for pack, path in paths.items():
        start = time.process_time()
        engine = build_engine(path, package="tensorrt_rtx", compute_capabilities=CAPABILITIES)
        plan = summarize(compiled(engine))
        rows[pack] = {
            "build_s": time.process_time() - start,
            "engine_bytes": len(engine.blob),
            "integer_products": plan.int8_gemm,
            "floating_products": plan.fp_gemm,
            "fused_attentions": plan.int8_attention + plan.fp_attention,
            "kernels": plan.kernels,
        }
    return rows


def main() -> None:
    """Measure, write packing.json and packing.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_s")
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    words = parser.parse_args()
    torch.set_num_threads(1)
    bundle = bundle_of(words.model, words.bits)
    markers = marker_graph(bundle)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS:
            paths, manifests = {}, {}
            for pack in PACKS:
                graph, manifests[pack] = lowered(markers, named(target), None, pack=pack)
                paths[pack] = Path(folder) / f"{target}-{pack}.onnx"
                save(graph, paths[pack])
            onnx = target == "onnx"
            found = on_onnx_runtime(paths, bundle.identity.preprocess.input_size) if onnx else on_tensorrt_rtx(paths)
            rows[target] = {
                pack: {"file_bytes": paths[pack].stat().st_size, **plain_of(manifests[pack].bytes), **found[pack]}
                for pack in PACKS
            }
            print(target, rows[target])
    machine = {"processor": processor(), **{p: version(p) for p in ("onnxruntime-gpu", "tensorrt-rtx-cu13")}}
    words.out.mkdir(parents=True, exist_ok=True)
    result = {"model": words.model, "bits": words.bits, "machine": machine, "targets": rows}
    write_json(words.out / "packing.json", result)
    write_text(words.out / "packing.md", page(result))


def page(result: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    onnx, rtx = (result["targets"][target] for target in TARGETS)
    first = [
        [
            pack,
            f"{row['file_bytes'] / MIB:.1f}",
            f"{row['load_s']:.2f}",
            f"{row['p50_ms']:.1f}",
            f"{row['times_as_fast']:.2f}",
            str(row["integer_products"]),
        ]
        for pack, row in onnx.items()
    ]
    second = [
        [
            pack,
            f"{row['file_bytes'] / MIB:.1f}",
            f"{row['engine_bytes'] / MIB:.1f}",
            f"{row['build_s']:.1f}",
            *(str(row[name]) for name in ("integer_products", "floating_products", "fused_attentions", "kernels")),
        ]
        for pack, row in rtx.items()
    ]
    head = [
        "pack",
        "graph MiB",
        "engine MiB",
        "build CPU s",
        "INT8 GEMM",
        "FP GEMM",
        "fused attention",
        "other kernels",
    ]
    machine = result["machine"]
    return (
        f"# Packing\n\n`python benchmarks/packing.py`: {result['model']} at {result['bits']}, random weights, the same integers "
        f"in both forms; {onnx['int8']['float32'] / MIB:.1f} MiB in float32.\n\nONNX Runtime, one thread, CPU time:\n\n"
        f"{table(['pack', 'graph MiB', 'load s', 'p50 ms', 'times as fast', 'integer products'], first)}\n\n"
        f"TensorRT-RTX, compiled for {' and '.join(CAPABILITIES)}, not executed:\n\n{table(head, second)}\n\n"
        f"{machine['processor']}; onnxruntime {machine['onnxruntime-gpu']}, tensorrt_rtx {machine['tensorrt-rtx-cu13']}.\n"
    )


if __name__ == "__main__":
    main()
