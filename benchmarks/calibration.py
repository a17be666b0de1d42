"""How long calibration takes and what it holds: python benchmarks/calibration.py [--models vit_t vit_s …] [--out FOLDER].

Full-size models with random weights on noise: accuracy is not measured. Each model runs in a process of its own, so that
peak memory is its own; a model named twice runs twice. The solver's time is set against its floating-point operations at
the rate at which this machine multiplies float64 matrices, measured beside it.
"""

import os
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import sheet

from erq_export.calibrate.budget import budget
from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.phases import Phases
from erq_export.calibrate.solve.flop import SWEEP_FLOP, counted_entries, gemm_rate, matrix_flop
from erq_export.contract.records import plain_of
from erq_export.flow import page
from erq_export.flow.job import Job, resolve
from erq_export.flow.meter import Meter
from erq_export.flow.run import begin
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT

MODELS = ("vit_t", "vit_s", "vit_b", "swin_t")


def job(model: str, bits: str, calib: int, data: str) -> Job:
    given = {"name": model, "pretrained": False, "data": data, "calib": calib, "bits": bits, "device": "cpu"}
    return resolve(given | {"targets": ("onnx", "tensorrt-rtx")})


def measure(task: tuple[str, str, int]) -> dict[str, Any]:
    """One calibration, not kept; the rate is taken before and after, the better one counts."""
    model, bits, calib = task
    with tempfile.TemporaryDirectory() as folder, Store.none() as store:
        asked = job(model, bits, calib, sheet.noise(Path(folder), calib))
        work = begin(asked, SILENT, store)
        images, device = work.calibration_images(0), work.stages.device
    expected, phases, meter, rate = budget(work.model, calib, asked.options), Phases(), Meter(), gemm_rate()
    start = time.process_time()
    with meter.stage("calibrate"), counted_entries() as entries:
        bundle = calibrate(
            work.model, images, asked.quantization, device=device, progress=SILENT.progress, phases=phases
        )
    cpu, rate, (cost,) = time.process_time() - start, max(rate, gemm_rate()), meter.stages
    matrices = sum(matrix_flop(*layer.weight_q.shape) for layer in bundle.layers.values())
    flop = matrices + SWEEP_FLOP * sum(entries)
    return {
        "model": model,
        "n_layers": len(bundle.layers),
        "wall_s": cost.wall_s,
        "cpu_s": cpu,
        "peak_mib": cost.peak_mib,
        "expected": expected.says(),
        "phases_s": phases.seconds | {"other": cost.wall_s - sum(phases.seconds.values())},
        "phases_cpu_s": phases.cpu_seconds | {"other": cpu - sum(phases.cpu_seconds.values())},
        "solver_gflop": flop / 1e9,
        "solver_matrix_gflop": matrices / 1e9,
        "gemm_gflops": rate / 1e9,
        "solver_ratio": phases.seconds["solver"] / (flop / rate),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    words = sheet.words(__doc__, {"models": MODELS, "bits": "w4a4", "calib": 32})
    rows, machine = [], page.machine("torch")
    asked = plain_of(job(words.models[0], words.bits, words.calib, "").quantization)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(measure, [(model, words.bits, words.calib) for model in words.models], chunksize=1):
            rows.append(row)
            print(row, flush=True)
    report = {"machine": machine, "bits": words.bits, "calib": words.calib, "spec": asked, "rows": rows}
    sheet.write(words, "calibration", report)


if __name__ == "__main__":
    sheet.start(main)
