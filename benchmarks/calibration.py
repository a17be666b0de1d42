"""How long calibration takes and what it holds: python benchmarks/calibration.py [--models vit_t vit_s …] [--out FOLDER].

Full-size models with random weights on random images: accuracy is not measured. Each model runs in a process of its own, so
that peak memory is its own; a model named twice runs twice. The solver's time is set against its floating-point operations
at the rate at which this machine multiplies float64 matrices, measured beside it. CPU seconds stand beside wall seconds:
on two free cores the wall takes at least half of them, on a machine that others use it takes more.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import numpy as np
import torch

from erq_export.backends.machine import processor
from erq_export.calibrate.budget import budget
from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.phases import Phases
from erq_export.calibrate.solve import compiled
from erq_export.calibrate.solve.wqer import halves
from erq_export.contract.files import write_json, write_text
from erq_export.contract.records import plain_of
from erq_export.contract.spec import ModelSpec
from erq_export.data.calibration_set import CalibrationSet
from erq_export.flow.job import Job, resolve
from erq_export.flow.meter import Meter
from erq_export.models.loading import load
from erq_export.validate.report.markdown import table

TARGETS = ("onnx", "tensorrt-rtx")
MODELS = ("vit_t", "vit_s", "vit_b", "swin_t")
PHASES = ("ranges", "moments", "solver", "statistics")
RANDOM = "0" * 64  # in the place of a hash of the images
N_SQUARE, REPEATS = 1024, 10
SWEEP_FLOP = 5  # an entry of a sweep: its gain 2, the least gain 1, the update of its gradient 2


@contextmanager
def counted_entries() -> Iterator[list[int]]:
    """Counts the entries that the descents (flips and row steps) sweep over: a number for each of their calls."""
    counts: list[int] = []

    def counting(kernel: Callable[..., int]) -> Callable[..., int]:
        def run(first: np.ndarray, *rest: Any) -> int:
            n_sweeps = kernel(first, *rest)
            counts.append(n_sweeps * first.shape[1])
            return n_sweeps

        return run

    with ExitStack() as stack:
        for name in ("flip_rows", "step_rows"):
            stack.enter_context(patch.object(compiled, name, counting(getattr(compiled, name))))
        yield counts


@dataclass
class CpuPhases(Phases):
    """Phases that also know the CPU seconds of the process, all threads together."""

    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.process_time()
        with super().__call__(name):
            yield
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - start


def matrix_flop(n: int, k: int) -> float:
    """Floating-point operations of one layer's matrix products, factor and solves, as they are made; K = k + 1, and a
    triangular solve with r columns for m rows takes m r²:
    factor K³/3; Aqer's product 2nkK and two solves of the system, for n rows or k (aqer.py); every round of Wqer the
    gradient of its rounding 2ns², the product 2nsr and one solve nr² (ridge.py); the gradient of the row steps 2nk².
    The descents are counted apart.
    """
    K = k + 1
    flop = K**3 / 3 + 2 * n * k * K + 2 * min(n, k) * K * K + 2 * n * k * k
    for S, R in halves(K):
        s, r = S.stop - S.start, R.stop - R.start
        flop += 2 * n * s * s + 2 * n * s * r + n * r * r
    return flop


def gemm_rate() -> float:
    """Operations per second of this machine's float64 matrix product: the best of a few."""
    a = torch.randn(N_SQUARE, N_SQUARE, dtype=torch.float64)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * N_SQUARE**3 / best


def measure(model: str, job: Job) -> dict[str, Any]:
    """One calibration; the rate is taken before and after, the better one counts."""
    loaded = load(ModelSpec(name=model, pretrained=False), seed=0)
    shape = loaded.identity.preprocess.input_size
    pixels = torch.randn(job.data.calib, *shape, generator=torch.Generator().manual_seed(0))
    data = CalibrationSet(pixels=pixels, names=tuple(f"noise/{i}" for i in range(job.data.calib)), sha256=RANDOM)
    expected, phases, meter, rate = budget(loaded, job.data.calib, job.options), CpuPhases(), Meter(), gemm_rate()
    start = time.process_time()
    with meter.stage("calibrate"), counted_entries() as entries:
        bundle = calibrate(
            loaded, data, job.quantization, device=torch.device("cpu"), progress=lambda *_: None, phases=phases
        )
    cpu, rate = time.process_time() - start, max(rate, gemm_rate())
    matrices = sum(matrix_flop(*layer.weight_q.shape) for layer in bundle.layers.values())
    flop = matrices + SWEEP_FLOP * sum(entries)
    (cost,) = meter.stages
    return {
        "model": model,
        "n_layers": len(bundle.layers),
        "wall_s": cost.wall_s,
        "cpu_s": cpu,
        "peak_mib": cost.peak_mib,
        "expected": expected.says(),
        "phases_s": phases.seconds | {"other": cost.wall_s - sum(phases.seconds.values())},
        "phases_cpu_s": phases.cpu | {"other": cpu - sum(phases.cpu.values())},
        "solver_gflop": flop / 1e9,
        "solver_matrix_gflop": matrices / 1e9,
        "gemm_gflops": rate / 1e9,
        "solver_ratio": phases.seconds["solver"] / (flop / rate),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Measure each model in a process of its own, write calibration.json and calibration.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--calib", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    words = parser.parse_args()
    job = resolve({"name": "vit_s", "bits": words.bits, "targets": TARGETS, "calib": words.calib})
    if words.one:
        json.dump(measure(words.one, job), sys.stdout)
        return
    rows = []
    for model in words.models:
        command = [sys.executable, __file__, "--one", model, "--bits", words.bits, "--calib", str(words.calib)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1])
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": version("torch")}
    words.out.mkdir(parents=True, exist_ok=True)
    write_json(words.out / "calibration.json", {"machine": machine, "spec": plain_of(job.quantization), "rows": rows})
    write_text(words.out / "calibration.md", page(rows, machine, words))


def page(rows: list[dict[str, Any]], machine: dict[str, Any], words: argparse.Namespace) -> str:
    """The table as Markdown: each phase as wall seconds (CPU seconds)."""

    def seconds(row: dict[str, Any], phase: str) -> str:
        return f"{row['phases_s'][phase]:.1f} ({row['phases_cpu_s'][phase]:.1f})"

    body = [
        [
            row["model"],
            f"{row['wall_s']:.1f} ({row['cpu_s']:.1f})",
            *(seconds(row, phase) for phase in (*PHASES, "other")),
            f"{row['peak_mib'] / 1024:.2f}",
            f"{row['solver_gflop']:.0f}",
            f"{row['gemm_gflops']:.0f}",
            f"{row['solver_ratio']:.1f}",
            f"{row['load_average']:.1f}",
        ]
        for row in rows
    ]
    head = ["model", "whole", *PHASES, "other", "peak GiB", "solver GFLOP", "GEMM GFLOP/s", "ratio", "load"]
    return (
        f"# Calibration\n\n`python benchmarks/calibration.py`: {words.bits}, {words.calib} random images, erq with its defaults; "
        "wall seconds (CPU seconds of all threads). Ratio: solver time to its operations, those of the descents included, at "
        "this machine's float64 GEMM rate. Load: the system's load average at the end of the run; above "
        f"{machine['threads']} others were using the cores, and CPU seconds over {machine['threads']} are what the wall "
        "could have been at best. A model listed twice was run twice.\n\n"
        f"{table(head, body)}\n\n{machine['processor']}; {machine['threads']} threads; torch {machine['torch']}.\n"
    )


if __name__ == "__main__":
    main()
