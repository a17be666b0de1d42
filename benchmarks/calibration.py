"""How long calibration takes and what it holds: python benchmarks/calibration.py [--models vit_t vit_s vit_b] [--out FOLDER].

Full-size models with random weights on random images: time does not depend on the values, accuracy is not measured.
Each model runs in a process of its own, so that peak memory is its own. The solver's time is set against its
floating-point operations at the rate at which this machine multiplies float64 matrices, measured beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import torch

from erq_export.artifacts import write_json, write_text
from erq_export.calibrate.budget import budget
from erq_export.calibrate.data import CalibrationSet
from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.wqer import halves
from erq_export.meter import Meter, Phases
from erq_export.models.loading import load
from erq_export.spec import Bits, ModelSpec, QuantSpec
from erq_export.validate.machine import processor
from erq_export.validate.report import table

TARGETS = ("onnx", "tensorrt-rtx")
N_SQUARE, REPEATS = 1024, 5


def solver_flop(n: int, k: int, spec: QuantSpec) -> float:
    """Floating-point operations of one layer (erq.md 12.2): factor, Aqer, every round of Wqer, refinement by rank-one
    updates with every row flipping `flips` times, then the steps over the whole row."""
    K = k + 1
    flop = K**3 / 3 + 2 * n * k * K + 2 * n * K * K
    for S, R in halves(K):
        s, r = S.stop - S.start, R.stop - R.start
        flop += 2 * n * s * s + spec.flips * n * s + 2 * r * s * n + 2 * r * r * n
    return flop + 2 * n * k * k + spec.row_steps * n * k


def gemm_rate() -> float:
    """Operations per second of this machine's float64 matrix product: the best of a few."""
    a = torch.randn(N_SQUARE, N_SQUARE, dtype=torch.float64)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * N_SQUARE**3 / best


def measure(model: str, spec: QuantSpec) -> dict[str, Any]:
    """One calibration; the rate is taken before and after, the better one counts."""
    loaded = load(ModelSpec(name=model, pretrained=False), seed=0)
    shape = loaded.identity.preprocess.input_size
    pixels = torch.randn(spec.calib, *shape, generator=torch.Generator().manual_seed(0))
    data = CalibrationSet(pixels=pixels, names=tuple(f"noise/{i}" for i in range(spec.calib)), sha256="random")
    expected, phases, meter, rate = budget(loaded, spec), Phases(), Meter(), gemm_rate()
    with meter.stage("calibrate"):
        bundle = calibrate(loaded, data, spec, device=torch.device("cpu"), progress=lambda *_: None, phases=phases)
    rate = max(rate, gemm_rate())
    flop = sum(solver_flop(*layer.weight_q.shape, spec) for layer in bundle.layers.values())
    (cost,) = meter.stages
    return {
        "model": model,
        "n_layers": len(bundle.layers),
        "wall_s": cost.wall_s,
        "peak_mib": cost.peak_mib,
        "expected": expected.says(),
        "phases_s": phases.seconds,
        "solver_gflop": flop / 1e9,
        "gemm_gflops": rate / 1e9,
        "solver_ratio": phases.seconds["solver"] / (flop / rate),
    }


def main() -> None:
    """Measure each model in a process of its own, write calibration.json and calibration.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_t", "vit_s", "vit_b"])
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--calib", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    words = parser.parse_args()
    spec = QuantSpec(bits=Bits.parse(words.bits), targets=TARGETS, calib=words.calib)
    if words.one:
        json.dump(measure(words.one, spec), sys.stdout)
        return
    rows = []
    for model in words.models:
        command = [sys.executable, __file__, "--one", model, "--bits", words.bits, "--calib", str(words.calib)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1])
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": version("torch")}
    words.out.mkdir(parents=True, exist_ok=True)
    write_json(words.out / "calibration.json", {"machine": machine, "spec": spec.to_json(), "rows": rows})
    write_text(words.out / "calibration.md", page(rows, machine, words))


def page(rows: list[dict[str, Any]], machine: dict[str, Any], words: argparse.Namespace) -> str:
    """The table as Markdown."""
    body = [
        [
            row["model"],
            f"{row['wall_s']:.1f}",
            *(f"{row['phases_s'][phase]:.1f}" for phase in ("ranges", "moments", "solver")),
            f"{row['peak_mib'] / 1024:.2f}",
            f"{row['solver_gflop']:.0f}",
            f"{row['gemm_gflops']:.0f}",
            f"{row['solver_ratio']:.1f}",
        ]
        for row in rows
    ]
    head = ["model", "wall s", "ranges s", "moments s", "solver s", "peak GiB", "solver GFLOP", "GEMM GFLOP/s", "ratio"]
    return (
        f"# Calibration\n\n`python benchmarks/calibration.py`: {words.bits}, {words.calib} random images, erq with its defaults. "
        "Ratio: solver time to its operations at this machine's float64 GEMM rate.\n\n"
        f"{table(head, body)}\n\n{machine['processor']}; {machine['threads']} threads; torch {machine['torch']}.\n"
    )


if __name__ == "__main__":
    main()
