"""How fast our graphs are in ONNX Runtime on a CPU: python benchmarks/onnxruntime_speed.py [--models …] [--out FOLDER].

Beside the float32 graph and ONNX Runtime's own quantize_static at its fastest settings, one with attention in float and
one in integers, in turns (every round runs each once, the first one rotating). Full-size models with random weights on
random images: speed does not depend on the values, so round to nearest from one image serves; accuracy is not measured.
The file is not called onnxruntime.py, which would stand in the package's way. Writes onnxruntime.json and onnxruntime.md.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import numpy as np
import quantize_static
import torch
from onnxruntime_profile import profile
from torch import Tensor

from erq_export.backends.machine import processor
from erq_export.backends.onnxruntime import session
from erq_export.calibrate.loop import calibrate
from erq_export.contract.files import write_json, write_text
from erq_export.contract.spec import ModelSpec, Quantization
from erq_export.contract.targets import TARGETS
from erq_export.data.calibration_set import CalibrationSet
from erq_export.exporters.onnx.write import float_graph, lowered, marker_graph, save
from erq_export.flow.job import resolve
from erq_export.models.loading import load
from erq_export.validate.report.markdown import table

THREADS, BATCHES = (1, 2), (1, 8)
CALIB = 1
WARM_UP, SELECTION_ROUNDS = 2, 10
ATTENTION = "+attention"  # ends the name of a graph whose attention is in integers
FLOAT, THEIRS = "float32", "quantize_static"
WANTED = 2.2  # times float32, at vit_s


def variants() -> dict[str, Quantization]:
    """What is ours: bits (in the graph they differ by Clip), with attention in float and in integers."""
    return {
        bits + ending: resolve({"name": "vit_s", "bits": bits, "method": "rtn", "attention": attention}).quantization
        for ending, attention in (("", "fp16"), (ATTENTION, "int8"))
        for bits in ("w8a8", "w4a4")
    }


def make_graphs(model: str, names: Sequence[str], folder: Path, pixels: Tensor) -> dict[str, Path]:
    """The float graph and ours by name; a file that lies in the folder already is not made again."""
    found = {FLOAT: folder / f"{model}.onnx"}
    if not found[FLOAT].exists():
        loaded = load(ModelSpec(name=model, pretrained=False), seed=0)
        save(float_graph(loaded.model, loaded.identity.preprocess.input_size), found[FLOAT])
    data = CalibrationSet(pixels=pixels, names=tuple(f"noise/{i}" for i in range(CALIB)), sha256="0" * 64)
    for name in names:
        spec = variants()[name]
        found[name] = folder / f"{model}.{name}.onnx"
        if not found[name].exists():
            loaded = load(ModelSpec(name=model, pretrained=False), seed=0)
            bundle = calibrate(loaded, data, spec, device=torch.device("cpu"), progress=lambda *_: None)
            save(lowered(marker_graph(bundle), TARGETS["onnx"], None)[0], found[name])
        print(model, name, flush=True)
    return found


def in_turns(graphs: dict[str, Path], batch: int, threads: int, *, seconds: float, rounds: int) -> dict[str, Any]:
    """Milliseconds of each graph and its speed against the first, paired by round: median, 10th and 90th percentile.

    By the wall clock, and by the processor time of the process, which other users of the machine disturb less; the
    latter counts threads that wait as busy, so it is given for one thread only.
    """
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1)).numpy()
    names = list(graphs)
    sessions = [session(path, threads=threads) for path in graphs.values()]
    for _ in range(WARM_UP):
        for it in sessions:
            it.run(None, {"pixels": pixels})
    wall: list[list[float]] = []
    cpu: list[list[float]] = []
    begin = time.perf_counter()
    while len(wall) < rounds or time.perf_counter() - begin < seconds:
        wall.append([0.0] * len(names))
        cpu.append([0.0] * len(names))
        for k in range(len(names)):
            i = (len(wall) + k) % len(names)
            start, started = time.perf_counter(), time.process_time()
            sessions[i].run(None, {"pixels": pixels})
            wall[-1][i], cpu[-1][i] = time.perf_counter() - start, time.process_time() - started
    figures = {"wall": np.array(wall)} | ({"cpu": np.array(cpu)} if threads == 1 else {})  # (rounds, graphs)
    return {
        "batch": batch,
        "threads": threads,
        "rounds": len(wall),
        **{clock: {name: summary(t, i) for i, name in enumerate(names)} for clock, t in figures.items()},
        "ours_to_theirs": ours_to_theirs(names, figures["wall"]),
    }


def ours_to_theirs(names: list[str], t: np.ndarray) -> dict[str, Any]:
    """Each of ours beside the quantize_static graph that has the same products in integers; t (rounds, graphs)."""
    beside = {name: THEIRS + ATTENTION * name.endswith(ATTENTION) for name in names if not name.startswith(THEIRS)}
    return {
        name: percentiles(t[:, names.index(other)] / t[:, names.index(name)])
        for name, other in beside.items()
        if name != FLOAT and other in names
    }


def summary(t: np.ndarray, i: int) -> dict[str, float]:
    return {"median_ms": 1e3 * float(np.median(t[:, i])), "min_ms": 1e3 * float(t[:, i].min())} | percentiles(
        t[:, 0] / t[:, i]
    )


def percentiles(ratios: np.ndarray) -> dict[str, float]:
    p10, median, p90 = (float(p) for p in np.percentile(ratios, [10, 50, 90]))
    return {"p10": p10, "ratio": median, "p90": p90}


def fastest(float_path: Path, pixels: Tensor, folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """The settings of quantize_static with the greatest product of their speeds at both batches, one with attention in
    float and one in integers, and what every one reached."""
    made = dict(quantize_static.graphs(float_path, pixels, folder))
    tried = [in_turns({FLOAT: float_path} | made, batch, 1, seconds=0, rounds=SELECTION_ROUNDS) for batch in BATCHES]
    speed = {name: [run["cpu"][name]["ratio"] for run in tried] for name in made}
    chosen = {}
    for name in sorted(made, key=lambda name: float(np.prod(speed[name]))):  # the best of each kind comes last
        chosen[THEIRS if quantize_static.float_attention(name) else THEIRS + ATTENTION] = name
    files = {kind: made[name] for kind, name in sorted(chosen.items())}
    return files, {"chosen": chosen, "speed_at_batches": speed, "batches": BATCHES}


def measure(model: str, names: Sequence[str], folder: Path, *, seconds: float, rounds: int) -> dict[str, Any]:
    """Everything about one model."""
    pixels = torch.randn(CALIB, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    graphs = make_graphs(model, names, folder, pixels)
    theirs, settings = fastest(graphs[FLOAT], pixels, folder)
    print(model, settings, flush=True)
    graphs = {FLOAT: graphs.pop(FLOAT), **theirs, **graphs}
    runs = []
    for threads in THREADS:
        for batch in BATCHES:
            runs.append(in_turns(graphs, batch, threads, seconds=seconds, rounds=rounds))
            print(model, runs[-1], flush=True)
    profiles = {
        f"batch {batch}": {
            name: profile(path, torch.randn(batch, 3, 224, 224), threads=1) for name, path in graphs.items()
        }
        for batch in BATCHES
    }
    return {"model": model, "quantize_static": settings, "runs": runs, "profiles": profiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_s", "swin_t"])
    parser.add_argument("--variants", nargs="+", default=list(variants()), choices=variants())
    parser.add_argument("--seconds", type=float, default=60, help="of every timing")
    parser.add_argument("--rounds", type=int, default=10, help="of every timing at least, whatever they take")
    parser.add_argument(
        "--graphs", type=Path, help="folder to keep the graphs in; those that lie there are not made again"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    words = parser.parse_args()
    packages = ("erq-export", "onnxruntime-gpu", "torch", "timm")
    machine = {"processor": processor(), "cores": os.cpu_count(), **{name: version(name) for name in packages}}
    report: dict[str, Any] = {"machine": machine, "seconds": words.seconds, "rounds": words.rounds, "models": []}
    words.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = words.graphs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for model in words.models:
            found = measure(model, words.variants, folder, seconds=words.seconds, rounds=words.rounds)
            report["models"].append(found | {"load_average": os.getloadavg()})
            write_json(words.out / "onnxruntime.json", report)
            write_text(words.out / "onnxruntime.md", page(report))


def page(report: dict[str, Any]) -> str:
    """The tables as Markdown."""
    machine = report["machine"]
    parts = [
        "# Speed in ONNX Runtime on a CPU",
        "`python benchmarks/onnxruntime_speed.py`: full-size models, random weights and images (speed does not depend on"
        f" the values), every graph in turns, at least {report['rounds']} rounds and {report['seconds']:g} s a line. Times"
        " as fast as float32: median of the ratios within a round (10th … 90th percentile); behind the stroke the same"
        " by processor time, for one thread.",
        f"{machine['processor']}; {machine['cores']} cores, shared with other work; onnxruntime"
        f" {machine['onnxruntime-gpu']}, torch {machine['torch']}, timm {machine['timm']}.",
    ]
    for row in report["models"]:
        parts += [f"## {row['model']}", speed_table(row), *verdict(row), time_table(row), settings_table(row)]
    return "\n\n".join(parts) + "\n"


def speed_table(row: dict[str, Any]) -> str:
    names = [name for name in row["runs"][0]["wall"] if name != FLOAT]
    body = []
    for run in row["runs"]:
        cells = []
        for name in names:
            found = run["wall"][name]
            cpu = f" / {run['cpu'][name]['ratio']:.2f}" if "cpu" in run else ""
            cells.append(f"{found['ratio']:.2f} ({found['p10']:.2f} … {found['p90']:.2f}){cpu}")
        body.append([str(run["threads"]), str(run["batch"]), f"{run['wall'][FLOAT]['median_ms']:.0f}", *cells])
    return table(["threads", "batch", "float32 ms", *names], body)


def verdict(row: dict[str, Any]) -> list[str]:
    """What was asked for, and what was found: each beside the quantize_static graph with the same integer products."""
    ours = list(row["runs"][0]["ours_to_theirs"])
    said = []
    for name in ours:
        speeds = [run["wall"][name]["ratio"] for run in row["runs"]]
        beside = [run["ours_to_theirs"][name] for run in row["runs"]]
        theirs = THEIRS + ATTENTION * name.endswith(ATTENTION)
        slower = [b for b in beside if b["p90"] < 1]
        said.append(
            f"{name}: {min(speeds):.2f} to {max(speeds):.2f} × float32"
            + (f" (wanted at vit_s: {WANTED})" if row["model"] == "vit_s" else "")
            + f"; {min(b['ratio'] for b in beside):.2f} to {max(b['ratio'] for b in beside):.2f} × {theirs}"
            + (
                f", slower in {len(slower)} lines beyond the spread."
                if slower
                else ", nowhere slower beyond the spread."
            )
        )
    return ["  \n".join(said)]


def time_table(row: dict[str, Any]) -> str:
    """Milliseconds and share by group, from the profiler, one thread."""
    tables = []
    for batch, profiles in row["profiles"].items():
        totals = {name: sum(found["by_group_ms"].values()) for name, found in profiles.items()}
        groups = list(dict.fromkeys(group for found in profiles.values() for group in found["by_group_ms"]))
        spent = {g: [found["by_group_ms"].get(g, 0.0) for found in profiles.values()] for g in groups}
        groups.sort(key=lambda group: -max(spent[group]))
        body = [
            [
                group,
                *(
                    f"{ms:.1f} ({100 * ms / total:.0f} %)"
                    for ms, total in zip(spent[group], totals.values(), strict=True)
                ),
            ]
            for group in groups
        ]
        body.append(["sum", *(f"{total:.1f}" for total in totals.values())])
        tables.append(
            f"{batch.capitalize()}, one thread, ms of kernels by the profiler:\n\n{table(['', *profiles], body)}"
        )
    return "\n\n".join(tables)


def settings_table(row: dict[str, Any]) -> str:
    found = row["quantize_static"]
    body = [
        [f"**{name}**" if name in found["chosen"].values() else name, *(f"{speed:.2f}" for speed in speeds)]
        for name, speeds in found["speed_at_batches"].items()
    ]
    head = ["quantize_static", *(f"batch {batch}" for batch in found["batches"])]
    return (
        "Settings tried, times as fast as float32 by processor time, one thread; the best with attention in integers"
        f" ({THEIRS}{ATTENTION}) and in float ({THEIRS}) are compared above:\n\n{table(head, body)}"
    )


if __name__ == "__main__":
    main()
