"""Every method on the bundled model, side by side: python benchmarks/methods.py [--seeds N] [--out FOLDER].

Calibrated on the digits that trained the model, measured on the held-out ones. Writes methods.json and methods.md, anew
after every row.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import torch
from digits import CPU, DEMO, Judged, figures
from torch import Tensor

from erq_export.backends.machine import processor
from erq_export.calibrate.loop import calibrate
from erq_export.contract.files import write_json, write_text
from erq_export.contract.records import plain_of
from erq_export.contract.registry import METHODS
from erq_export.contract.spec import Bits
from erq_export.data.calibration_set import calibration_set
from erq_export.data.digits import Digits
from erq_export.flow.compare import Row, layer_error, quantization, summary
from erq_export.flow.job import resolve
from erq_export.models.loading import load
from erq_export.models.rebuild import reference_model
from erq_export.validate.report.markdown import table

BITS = ("w2a4", "w3a4", "w4a4", "w4a8", "w8a8")
ORDER = ("rtn", "repq", "gptq", "erq")
N_THREADS = 1  # the order of floating-point sums follows it; one also suits a shared machine
TARGETS = ("onnx", "tensorrt-rtx")  # the grids must suit both
BASE = resolve({"name": "demo", "bits": BITS[0], "targets": TARGETS})  # all else as the command line has it
FIGURES = {
    "layer_error": "layer error",
    "logits_error": "logits error",
    "agreement": "agreement %",
    "top1": "top-1 %",
}
PAIR = ("erq", "gptq")  # whose decisions are set beside each other, image by image
PAIR_BITS = ("w2a4", "w3a4", "w4a4")

Decisions = dict[str, int]  # image → class, of the images that a quantized model puts elsewhere than the float one


def measure(task: tuple[str, str, int]) -> dict[str, Any]:
    """One row: a setting over the seeds, every figure's mean, deviation, range and values, each layer's mean error, and
    each seed's decisions unlike the float model's."""
    bits, method, n_seeds = task
    torch.set_num_threads(N_THREADS)
    held_out, train, preprocess = Judged("held_out"), Digits("train"), load(DEMO, seed=0).identity.preprocess
    found, layers, decisions = [], [], []
    spec = quantization(BASE, Row(bits=Bits.parse(bits), method=method))
    for seed in range(n_seeds):
        data, start = calibration_set(train, preprocess, n=BASE.data.calib, seed=seed), time.perf_counter()
        bundle = calibrate(load(DEMO, seed=0), data, spec, device=CPU, progress=lambda *_: None)
        calibration_s = time.perf_counter() - start
        logits = held_out.logits(reference_model(bundle))
        error, top1 = layer_error(bundle), held_out.top1(logits)
        near = figures(logits, held_out.float_logits)
        found.append({"layer_error": error, "top1": top1, **near, "calibration_s": calibration_s})
        layers.append({path: row.error for path, row in bundle.statistics.items()})
        decisions.append(unlike(held_out, logits))
    means = {path: statistics.fmean(errors[path] for errors in layers) for path in layers[0]}
    summed = {name: plain_of(figure) for name, figure in summary(found).items()}
    return {"bits": bits, "method": method, **summed, "layers": means, "decisions": decisions}


def unlike(held_out: Judged, logits: Tensor) -> Decisions:
    """The decisions that differ from the float model's."""
    got, exact = logits.argmax(1), held_out.float_logits.argmax(1)
    return {held_out.names[i]: int(got[i]) for i in (got != exact).nonzero()[:, 0].tolist()}


@dataclass(frozen=True, kw_only=True)
class Margin:
    """A held-out image as the float model sees it: margin = largest logit − second; rank 1 has the smallest margin."""

    label: int
    decision: int
    margin: float
    rank: int


def margins(held_out: Judged) -> dict[str, Margin]:
    """Every held-out image's margin."""
    two = held_out.float_logits.topk(2, 1)
    margin = two.values[:, 0] - two.values[:, 1]
    rank = margin.argsort(stable=True).argsort()
    return {
        name: Margin(
            label=int(held_out.labels[i]),
            decision=int(two.indices[i, 0]),
            margin=float(margin[i]),
            rank=int(rank[i]) + 1,
        )
        for i, name in enumerate(held_out.names)
    }


def paired(rows: dict[str, list[Decisions]], images: dict[str, Margin]) -> dict[str, Any]:
    """Two methods' decisions at one precision, seed by seed on the same images.

    only_wrong: (image, seed) pairs that this method alone gets wrong, whose difference is that of top-1;
    changed: per image on which a decision ever differs from the float model's, on how many seeds, by method.
    """
    one, other = PAIR

    def wrong(decisions: Decisions) -> set[str]:
        return {name for name, m in images.items() if decisions.get(name, m.decision) != m.label}

    pairs = [(wrong(a), wrong(b)) for a, b in zip(rows[one], rows[other], strict=True)]
    moved = {name for method in PAIR for decisions in rows[method] for name in decisions}
    return {
        "only_wrong": {one: sum(len(a - b) for a, b in pairs), other: sum(len(b - a) for a, b in pairs)},
        "images_only_wrong": {
            one: sorted({n for a, b in pairs for n in a - b}),
            other: sorted({n for a, b in pairs for n in b - a}),
        },
        "changed": {
            name: {method: sum(name in d for d in rows[method]) for method in PAIR}
            for name in sorted(moved, key=lambda name: images[name].rank)
        },
    }


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table: mean ± standard deviation (range)."""

    def cell(name: str) -> str:
        form = ".2f" if name in ("top1", "agreement") else ".3g"
        mean, std, low, high = (format(row[name][figure], form) for figure in ("mean", "std", "min", "max"))
        return f"{mean} ± {std} ({low} … {high})"

    return [row["bits"], row["method"], *map(cell, FIGURES)]


def decisions_section(report: dict[str, Any]) -> list[str]:
    """Where the methods decide unlike the float model, and how narrowly the float model had decided."""
    one, other = PAIR
    lines = [
        "## Whose decisions",
        "",
        f"{one} and {other} on the same held-out digits and seeds. Only wrong: (image, seed) pairs that one method gets"
        " wrong and the other right; their difference is the difference of top-1. Margin: the float model's largest"
        " logit less its second; rank 1 is the smallest margin.",
        "",
    ]
    counts = [
        [bits, *(str(p["only_wrong"][m]) for m in PAIR), *(str(len(p["images_only_wrong"][m])) for m in PAIR)]
        for bits, p in report["paired"].items()
    ]
    lines += [
        table(["bits", f"only {one} wrong", f"only {other} wrong", f"{one}: images", f"{other}: images"], counts),
        "",
    ]
    low, middle, high = report["margin_quantiles"]
    lines += [
        f"Margins of all {report['held_out']} images: 1 % below {low:.3g}, half below {middle:.3g}, 99 % below {high:.3g}.",
        "",
    ]
    moved = [
        [bits, name, *(f"{report['images'][name][key]}" for key in ("label", "decision")),
         f"{report['images'][name]['margin']:.3g}", str(report["images"][name]["rank"]),
         *(f"{n[m]}/{report['seeds']}" for m in PAIR)]
        for bits, p in report["paired"].items()
        for name, n in p["changed"].items()
    ]  # fmt: skip
    heading = ["bits", "image", "label", "float says", "float margin", "rank", *(f"{m} says otherwise" for m in PAIR)]
    return [*lines, table(heading, moved), ""]


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
            "- agreement: same decision as the float model's on the held-out digits",
            f"- top-1: on the {report['held_out']} held-out digits; one is {100 / report['held_out']:.2f} points;"
            f" float {report['float_top1']:.2f}",
            "",
            "Options: " + ", ".join(f"{name} {value}" for name, value in report["spec"].items()) + ".",
            "",
            table(["bits", "method", *FIGURES.values()], [cells(row) for row in report["rows"]]),
            "",
            *(decisions_section(report) if report["paired"] else []),
            f"{machine['processor']}; {machine['threads']} threads; Python {machine['python']}; {packages}.",
            "",
        ]
    )


def described(held_out: Judged, n_seeds: int) -> dict[str, Any]:
    """The report without its rows."""
    images = margins(held_out)
    spread = torch.tensor([m.margin for m in images.values()], dtype=torch.float64)
    return {
        "seeds": n_seeds,
        "spec": BASE.method.options,
        "calib": BASE.data.calib,
        "targets": TARGETS,
        "held_out": len(held_out.labels),
        "float_top1": held_out.top1(held_out.float_logits),
        "margin_quantiles": spread.quantile(torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)).tolist(),
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("erq-export", "torch", "timm", "scikit-learn")},
        },
    }


def compared(rows: list[dict[str, Any]], images: dict[str, Margin]) -> dict[str, Any]:
    """The rows with the methods of PAIR set against each other wherever both are there."""
    by = {(row["bits"], row["method"]): row["decisions"] for row in rows}
    ready = [bits for bits in PAIR_BITS if all((bits, method) in by for method in PAIR)]
    pairs = {bits: paired({method: by[bits, method] for method in PAIR}, images) for bits in ready}
    named = sorted({name for p in pairs.values() for name in p["changed"]})
    return {"paired": pairs, "images": {name: vars(images[name]) for name in named}, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="calibration seeds, from 0")
    parser.add_argument("--processes", type=int, default=1, help="rows measured at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder to write")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least 1")
    if absent := set(METHODS) - set(ORDER):
        sys.exit(f"benchmarks/methods.py has no row for {', '.join(sorted(absent))}")
    torch.set_num_threads(N_THREADS)
    args.out.mkdir(parents=True, exist_ok=True)
    held_out = Judged("held_out")
    about, images, rows = described(held_out, args.seeds), margins(held_out), []
    shown = [(bits, method) for bits in BITS for method in ORDER]
    # what is compared image by image first, the rest after it
    tasks = sorted(shown, key=lambda setting: (setting[0] not in PAIR_BITS, setting[1] not in PAIR))
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        for row in pool.map(measure, [(bits, method, args.seeds) for bits, method in tasks]):
            rows = sorted([*rows, row], key=lambda row: shown.index((row["bits"], row["method"])))
            print(*cells(row), sep="  ", flush=True)
            report = about | compared(rows, images)
            write_json(args.out / "methods.json", report)
            write_text(args.out / "methods.md", markdown(report))


if __name__ == "__main__":
    main()
