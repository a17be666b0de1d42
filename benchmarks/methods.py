"""Every method on the bundled model, side by side: python benchmarks/methods.py [--seeds N] [--out FOLDER].

Calibrated on the digits that trained the model, measured on the held-out ones. Writes methods.json and methods.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import torch
from torch import Tensor

from erq_export.aliases import DEMO_RIDGE
from erq_export.artifacts import write_json, write_text
from erq_export.bundle import Bundle
from erq_export.calibrate.data import CalibrationSet, calibration_set
from erq_export.calibrate.loop import calibrate
from erq_export.demo import Digits
from erq_export.images import batches
from erq_export.models.loading import load
from erq_export.registry import METHODS
from erq_export.spec import Bits, ModelSpec, QuantSpec
from erq_export.study import Setting, layer_error, seeded, summary
from erq_export.validate.accuracy import BATCH, Predictions
from erq_export.validate.distance import relative_l2
from erq_export.validate.machine import processor
from erq_export.validate.report import table
from erq_export.validate.runners import Runner, TorchRunner

BITS = ("w2a4", "w3a4", "w4a4", "w4a8", "w8a8")
ORDER = ("rtn", "repq", "gptq", "erq")
N_THREADS = 1  # the order of floating-point sums follows it; one also suits a shared machine
TARGETS = ("onnx", "tensorrt-rtx")  # the grids must suit both
DEMO = ModelSpec(name="demo")
BASE = QuantSpec(bits=Bits.parse(BITS[0]), targets=TARGETS, ridge=DEMO_RIDGE)  # all else as the command line has it
VARIED = ("bits", "targets", "method", "calib", "seed")  # fields of the spec that the table or its heading gives
CPU = torch.device("cpu")
FIGURES = {"layer_error": "layer error", "logits_error": "logits error", "top1": "top-1 %"}


class HeldOut:
    """The held-out digits, decoded once, with what the float model says of them."""

    def __init__(self) -> None:
        loaded, digits = load(DEMO, seed=0), Digits("held_out")
        self.labels = torch.tensor(digits.labels)
        self.chunks = list(batches(digits, loaded.identity.preprocess, range(len(digits)), BATCH))
        self.float_logits = self.logits(TorchRunner(loaded.model, CPU))

    def logits(self, runner: Runner) -> Tensor:
        """(n, classes) of every image."""
        return torch.cat([runner.logits(chunk) for chunk in self.chunks])

    def top1(self, logits: Tensor) -> float:
        return Predictions(labels=self.labels, by_runner={"it": logits.argmax(1)}).top1("it")

    def measure(self, bundle: Bundle) -> dict[str, float]:
        """top1 in per cent; logits_error ‖quantized − float‖/‖float‖ over all images."""
        logits = self.logits(TorchRunner(bundle.reference(), CPU))
        return {"top1": self.top1(logits), "logits_error": relative_l2(logits, self.float_logits)}


def measured(spec: QuantSpec, data: CalibrationSet, held_out: HeldOut) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of one calibration, and each layer's error."""
    start = time.perf_counter()
    bundle = calibrate(load(DEMO, seed=0), data, spec, device=CPU, progress=lambda *_: None)
    calibration_s = time.perf_counter() - start
    figures = {"layer_error": layer_error(bundle), **held_out.measure(bundle), "calibration_s": calibration_s}
    return figures, {path: row["error"] for path, row in bundle.statistics.items()}


def measure_all(n_seeds: int, held_out: HeldOut) -> list[dict[str, Any]]:
    """One row a setting: every figure's mean, deviation, range and values, and each layer's mean error."""
    train, preprocess = Digits("train"), load(DEMO, seed=0).identity.preprocess
    drawn = [calibration_set(train, preprocess, n=BASE.calib, seed=BASE.seed + i) for i in range(n_seeds)]
    rows = []
    for setting in (Setting(bits=Bits.parse(bits), method=method) for bits in BITS for method in ORDER):
        specs = seeded(BASE, setting, n_seeds)
        found = [measured(spec, data, held_out) for spec, data in zip(specs, drawn, strict=True)]
        layers = {path: statistics.fmean(errors[path] for _, errors in found) for path in found[0][1]}
        row = {"bits": str(setting.bits), "method": setting.method, **summary([f for f, _ in found]), "layers": layers}
        rows.append(row)
        print(*cells(row), sep="  ", flush=True)
    return rows


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table: mean ± standard deviation (range)."""

    def cell(figure: dict[str, Any], form: str) -> str:
        mean, std, low, high = (format(figure[name], form) for name in ("mean", "std", "min", "max"))
        return f"{mean} ± {std} ({low} … {high})"

    return [row["bits"], row["method"], *(cell(row[name], ".2f" if name == "top1" else ".3g") for name in FIGURES)]


def markdown(report: dict[str, Any]) -> str:
    machine = report["machine"]
    packages = ", ".join(f"{name} {machine[name]}" for name in ("erq-export", "torch", "timm", "scikit-learn"))
    return "\n".join(
        [
            "# Methods beside each other",
            "",
            f"`python benchmarks/methods.py --seeds {report['seeds']}`: the bundled model, calibrated on"
            f" {report['calib']} of the digits that trained it, {report['seeds']} seeds, same sites, grids for"
            f" {' and '.join(TARGETS)}. Mean ± standard deviation (range) over the seeds.",
            "",
            "- layer error: Σ‖ŷ − y‖²/Σ‖y‖² of a layer's output on the calibration rows, mean over the layers",
            "- logits error: ‖quantized − float‖/‖float‖ on the held-out digits",
            f"- top-1: on the {report['held_out']} held-out digits; one is {100 / report['held_out']:.2f} points;"
            f" float {report['float_top1']:.2f}",
            "",
            "Options: " + ", ".join(f"{name} {value}" for name, value in report["spec"].items()) + ".",
            "",
            table(["bits", "method", *FIGURES.values()], [cells(row) for row in report["rows"]]),
            "",
            f"{machine['processor']}; {machine['threads']} threads; Python {machine['python']}; {packages}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="calibration seeds, from 0")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder to write")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least 1")
    if absent := set(METHODS) - set(ORDER):
        sys.exit(f"benchmarks/methods.py has no row for {', '.join(sorted(absent))}")
    torch.set_num_threads(N_THREADS)
    held_out = HeldOut()
    report = {
        "seeds": args.seeds,
        "spec": {name: value for name, value in BASE.to_json().items() if name not in VARIED},
        "calib": BASE.calib,
        "targets": TARGETS,
        "held_out": len(held_out.labels),
        "float_top1": held_out.top1(held_out.float_logits),
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("erq-export", "torch", "timm", "scikit-learn")},
        },
        "rows": measure_all(args.seeds, held_out),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "methods.json", report)
    write_text(args.out / "methods.md", markdown(report))


if __name__ == "__main__":
    main()
