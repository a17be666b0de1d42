"""ERQ's options on the bundled model, side by side: python benchmarks/variants.py [--seeds N] [--out FOLDER].

Options are judged by what they do on training digits that were not calibrated on; the held-out digits are shown beside.
Writes variants.json and variants.md, anew after every row.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import torch
from digits import CPU, DEMO, Judged, figures

from erq_export.backends.machine import processor
from erq_export.calibrate.loop import CHUNK, calibrate
from erq_export.calibrate.ranges import input_grids
from erq_export.calibrate.setting import Setting
from erq_export.calibrate.states import stage_moments
from erq_export.contract.files import write_json, write_text
from erq_export.contract.records import plain_of
from erq_export.contract.spec import DataSpec, Quantization
from erq_export.data.calibration_set import CalibrationSet, calibration_set
from erq_export.data.digits import Digits
from erq_export.flow.compare import layer_error, summary
from erq_export.flow.job import resolve
from erq_export.models.aliases import DEMO_RIDGE
from erq_export.models.loading import load
from erq_export.models.rebuild import reference_model
from erq_export.validate.report.markdown import table

BITS = ("w3a4", "w2a4", "w4a4")
N_THREADS = 1  # the order of floating-point sums follows it; one also suits a shared machine
N_TRAIN = 200  # training digits that a variant is judged on, of the 1168 that it was not calibrated on
PAPER_RIDGE = 1e4
CALIB = DataSpec().calib
PUBLISHED = {
    "rounding": "paper",
    "row_steps": 0,
    "head_ridge": 1.0,
    "input_ranges": "quantized",
    "weight_percentiles": "repq",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "inputs quantized": {"inputs": "quantized"},
    "input-ranges quantized": {"input_ranges": "quantized"},
    "inputs and input-ranges quantized": {"inputs": "quantized", "input_ranges": "quantized"},
    "weight-percentiles repq": {"weight_percentiles": "repq"},
    "row-steps 0": {"row_steps": 0},
    "head-ridge 1": {"head_ridge": 1.0},
    "ridge 1e4": {"ridge": PAPER_RIDGE},
    "published, ridge 100": PUBLISHED,
    "published": PUBLISHED | {"ridge": PAPER_RIDGE},
}
FIGURES = {
    "layer_error": "layer error",
    "train_deployed_error": "deployed error, train",
    "train_logits_error": "logits error, train",
    "train_agreement": "agreement %, train",
    "held_out_logits_error": "logits error, held out",
    "held_out_top1": "top-1 %, held out",
}
JUDGED_BY = ("train_deployed_error", "train_logits_error")


def measured(spec: Quantization, data: CalibrationSet, train: Judged, held_out: Judged) -> dict[str, float]:
    """The figures of one calibration."""
    start = time.perf_counter()
    bundle = calibrate(load(DEMO, seed=0), data, spec, device=CPU, progress=lambda *_: None)
    found = {"layer_error": layer_error(bundle), "calibration_s": time.perf_counter() - start}
    model = reference_model(bundle)
    seen = train.inside(model, train.without(data.names, N_TRAIN))
    logits = held_out.logits(model)
    unseen = {"top1": held_out.top1(logits)} | figures(logits, held_out.float_logits)
    prefixed = {"train": seen, "held_out": unseen}
    return found | {f"{which}_{name}": value for which, they in prefixed.items() for name, value in they.items()}


def asked(bits: str, options: dict[str, Any]) -> Quantization:
    """What a variant changes in the bundled model's settings."""
    given = {"name": "demo", "bits": bits, "targets": ("onnx", "tensorrt-rtx")}
    return resolve(given, options=options).quantization


def measure(task: tuple[str, str, int]) -> dict[str, Any]:
    """One row: a precision and a variant over the seeds, every figure's mean, deviation, range and values."""
    bits, name, seeds = task
    torch.set_num_threads(N_THREADS)
    train, held_out = Judged("train"), Judged("held_out")
    spec, results = asked(bits, VARIANTS[name]), []
    for seed in range(seeds):
        data = calibration_set(train.digits, train.preprocess, n=CALIB, seed=seed)
        results.append(measured(spec, data, train, held_out))
    return {"bits": bits, "variant": name, **{name: plain_of(figures) for name, figures in summary(results).items()}}


def ridge_shares(seed: int = 0) -> dict[str, dict[str, float]]:
    """For every layer of the bundled model: rows, G's mean diagonal, and how many times that 0.1 · 1e4 is (w4a4)."""
    loaded, found = load(DEMO, seed=0), {}
    setting = Setting.of(asked("w4a4", {}))
    data = calibration_set(Digits("train"), loaded.identity.preprocess, n=CALIB, seed=seed)
    hidden = list(data.pixels.split(CHUNK))
    for stage in loaded.stages:
        grids = input_grids(loaded.model, stage, hidden, setting)
        moments, hidden = stage_moments(loaded.model, stage, hidden, grids)
        for path, m in moments.items():
            diagonal = float(m.G.diagonal()[:-1].mean())  # the last is the bias's
            found[path] = {"rows": m.n_rows, "mean_diagonal": diagonal, "times": 0.1 * PAPER_RIDGE / diagonal}
    return found


def wins(row: dict[str, Any], rows: list[dict[str, Any]], figure: str) -> str:
    """On how many seeds a variant is below the defaults."""
    base = next(r for r in rows if r["bits"] == row["bits"])
    pairs = list(zip(row[figure]["all"], base[figure]["all"], strict=True))
    return "" if row is base else f"{sum(a < b for a, b in pairs)}/{len(pairs)}"


def cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    def cell(name: str) -> str:
        form = ".2f" if name.endswith(("top1", "agreement")) else ".3g"
        return f"{row[name]['mean']:{form}} ± {row[name]['std']:{'.2g' if form == '.3g' else form}}"

    return [row["bits"], row["variant"], *map(cell, FIGURES), *(wins(row, rows, figure) for figure in JUDGED_BY)]


def markdown(report: dict[str, Any]) -> str:
    machine, shares = report["machine"], report["ridge"]
    packages = ", ".join(f"{name} {machine[name]}" for name in ("erq-export", "torch", "timm", "scikit-learn"))
    largest = max(shares, key=lambda path: shares[path]["times"])
    heading = ["bits", "variant", *FIGURES.values(), *(f"better: {FIGURES[name]}" for name in JUDGED_BY)]
    published = " ".join(f"-O {name}={value}" for name, value in PUBLISHED.items())
    ridge_rows = [
        [path, str(s["rows"]), f"{s['mean_diagonal']:.4g}", f"{s['times']:.3g}"] for path, s in shares.items()
    ]
    return "\n".join(
        [
            "# ERQ's options beside each other",
            "",
            f"`python benchmarks/variants.py --seeds {report['seeds']}`: the bundled model, calibrated on 32 of the digits"
            f" that trained it, {report['seeds']} seeds, grids for onnx and tensorrt-rtx, λ = {DEMO_RIDGE:g} where nothing"
            " else is said. Mean ± standard deviation over the seeds.",
            "",
            "- layer error: Σ‖ŷ − y‖²/Σ‖y‖² of a layer's output on the calibration rows, mean over the layers. With inputs"
            " quantized it holds the errors of the layers before it, too: not comparable with the other rows",
            f"- deployed error: the same inside the finished quantized model, on {N_TRAIN} training digits that were not"
            " calibrated on: comparable everywhere",
            "- logits error: ‖quantized − float‖/‖float‖;  agreement: same decision as the float model",
            "- better: on how many seeds the figure is below that of the defaults (same images)",
            f"- published: `{published}`",
            "",
            "Defaults are chosen by the training columns; the held-out ones are here to be seen.",
            "",
            table(heading, [cells(row, report["rows"]) for row in report["rows"]]),
            "",
            "## The paper's ridge on this model",
            "",
            f"0.1 λ with λ = 1e4 against the mean diagonal of Σ x̂ x̂ᵀ (w4a4, seed 0): up to {shares[largest]['times']:.0f}"
            f" times in {largest}.",
            "",
            table(["layer", "rows", "mean diagonal", "0.1 λ is times that"], ridge_rows),
            "",
            f"{machine['processor']}; {machine['threads']} threads; Python {machine['python']}; {packages}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="calibration seeds, from 0")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="these variants, beside the defaults")
    parser.add_argument("--bits", nargs="*", default=list(BITS), help="precisions")
    parser.add_argument("--processes", type=int, default=1, help="rows measured at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder to write")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least 1")
    names = [name for name in VARIANTS if name == "defaults" or args.only is None or name in args.only]
    torch.set_num_threads(N_THREADS)
    args.out.mkdir(parents=True, exist_ok=True)
    about = {
        "seeds": args.seeds,
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("erq-export", "torch", "timm", "scikit-learn")},
        },
        "ridge": ridge_shares(),
    }
    tasks, rows = [(bits, name, args.seeds) for bits in args.bits for name in names], []
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        for row in pool.map(measure, tasks):
            rows.append(row)
            print(*cells(row, rows), sep="  ", flush=True)
            report = about | {"rows": rows}
            write_json(args.out / "variants.json", report)
            write_text(args.out / "variants.md", markdown(report))


if __name__ == "__main__":
    main()
