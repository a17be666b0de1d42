"""How fast our graphs are in ONNX Runtime on a CPU: python benchmarks/onnxruntime_speed.py [--models …] [--out FOLDER].

Beside the float32 graph and ONNX Runtime's own quantize_static at its fastest settings, one with attention in float and
one in integers, in turns. Full-size models with random weights on noise: speed does not depend on the values, so round to
nearest from one image serves; accuracy is not measured. Writes onnxruntime.json and onnxruntime.md.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import quantize_static
import sheet
import torch
from numpy.typing import NDArray

from erq_export.flow import page
from erq_export.flow.job import resolve
from erq_export.flow.store.store import Store
from erq_export.flow.sweep import Calibrated, sweep
from erq_export.validate.latency import in_turns
from erq_export.validate.profile import profile
from erq_export.validate.runners import OnnxRuntimeRunner

THREADS, BATCHES = (1, 2), (1, 8)
WARM_UP, SELECTION_ROUNDS = 2, 10
CLOCKS = (time.perf_counter, time.process_time)
ATTENTION = "+attention"  # ends the name of a graph whose attention is in integers
FLOAT, THEIRS = "float32", "quantize_static"
VARIANTS = tuple(bits + ending for ending in ("", ATTENTION) for bits in ("w8a8", "w4a4"))  # bits differ by Clip
Paths = Mapping[str, Path]


def graphs(model: str, names: Sequence[str], data: str, store: Store) -> tuple[dict[str, Path], dict[str, Any]]:
    """The float graph, quantize_static's fastest and ours by name; and what each setting of quantize_static reached."""
    given = {"name": model, "pretrained": False, "data": data, "calib": 1, "method": "rtn", "seeds": 1, "device": "cpu"}
    asked = {n: {"bits": n.removesuffix(ATTENTION), "attention": "int8" if ATTENTION in n else "fp16"} for n in names}
    rows = sweep([({"graph": n}, resolve(given | own)) for n, own in asked.items()], made, store=store)
    ours = {name["graph"]: found for name, [found] in rows}
    float_graph, theirs, _ = ours[names[0]]
    files, settings = fastest(float_graph, theirs)
    return {FLOAT: float_graph, **files, **{name: path for name, (_, _, path) in ours.items()}}, settings


def made(c: Calibrated) -> tuple[Path, Paths, Path]:
    """The float graph, quantize_static's from it, and ours, all kept."""
    ours, exact = c.stages.graph(c.artifact, "onnx", "int8"), c.stages.float_graph(c.work.model)
    theirs = quantize_static.graphs(exact, c.data, c.stages.store)
    return exact.folder / "model.onnx", theirs, ours.folder / "model.onnx"


def timed(paths: Paths, batch: int, threads: int, *, seconds: float, rounds: int) -> dict[str, Any]:
    """Milliseconds of each graph and its speed against the first, paired by round: median, 10th and 90th percentile.

    By the wall clock, and by the processor time of the process, which other users of the machine disturb less; the
    latter counts threads that wait as busy, so it is given for one thread only.
    """
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    runners = [OnnxRuntimeRunner(path, threads=threads, name=name) for name, path in paths.items()]
    wall, cpu = in_turns(runners, pixels, clocks=CLOCKS, budget_s=seconds, least=rounds, rounds=10**6, warm_up=WARM_UP)
    figures = {"wall": wall} | ({"cpu": cpu} if threads == 1 else {})  # (rounds, graphs)
    by_clock = {clock: {name: summary(t, i) for i, name in enumerate(paths)} for clock, t in figures.items()}
    beside = ours_to_theirs(list(paths), wall)
    return {"batch": batch, "threads": threads, "rounds": len(wall), **by_clock, "ours_to_theirs": beside}


def ours_to_theirs(names: Sequence[str], t: NDArray[np.float64]) -> dict[str, Any]:
    """Each of ours beside the quantize_static graph that has the same products in integers; t (rounds, graphs)."""
    beside = {name: THEIRS + ATTENTION * name.endswith(ATTENTION) for name in names if not name.startswith(THEIRS)}
    return {
        name: {"theirs": other, **percentiles(t[:, names.index(other)] / t[:, names.index(name)])}
        for name, other in beside.items()
        if name != FLOAT and other in names
    }


def summary(t: NDArray[np.float64], i: int) -> dict[str, float]:
    least_and_median = {"min_ms": 1e3 * float(t[:, i].min()), "median_ms": 1e3 * float(np.median(t[:, i]))}
    return least_and_median | percentiles(t[:, 0] / t[:, i])


def percentiles(ratios: NDArray[np.float64]) -> dict[str, float]:
    p10, median, p90 = (float(p) for p in np.percentile(ratios, [10, 50, 90]))
    return {"p10": p10, "ratio": median, "p90": p90}


def fastest(float_graph: Path, theirs: Paths) -> tuple[dict[str, Path], dict[str, Any]]:
    """The settings with the greatest product of their speeds at both batches, one with attention in float and one in
    integers, and what every one reached."""
    paths = {FLOAT: float_graph, **theirs}
    tried = [timed(paths, batch, 1, seconds=0, rounds=SELECTION_ROUNDS) for batch in BATCHES]
    speed = {name: [run["cpu"][name]["ratio"] for run in tried] for name in theirs}
    ascending = sorted(theirs, key=lambda name: float(np.prod(speed[name])))  # the best of each kind comes last
    chosen = {THEIRS + ATTENTION * (not quantize_static.float_attention(name)): name for name in ascending}
    files = {kind: theirs[name] for kind, name in sorted(chosen.items())}
    return files, {"chosen": chosen, "speed_at_batches": speed, "batches": BATCHES}


def main() -> None:
    defaults = {"models": ("vit_s", "swin_t"), "variants": VARIANTS, "seconds": 60.0, "rounds": 10}
    words, models = sheet.words(__doc__, defaults), []
    about = {"machine": page.machine("erq-export", "onnxruntime-gpu", "torch", "timm") | {"cores": os.cpu_count()}}
    about |= {"seconds": words.seconds, "rounds": words.rounds}
    with tempfile.TemporaryDirectory() as folder, sheet.opened(words) as store:
        data = sheet.noise(Path(folder), 1)
        for model in words.models:
            paths, settings = graphs(model, words.variants, data, store)
            runs = [timed(paths, b, t, seconds=words.seconds, rounds=words.rounds) for t in THREADS for b in BATCHES]
            images = {f"batch {batch}": torch.randn(batch, 3, 224, 224) for batch in BATCHES}
            profiles = {b: {n: profile(path, x, threads=1) for n, path in paths.items()} for b, x in images.items()}
            found = {"model": model, "quantize_static": settings, "runs": runs, "profiles": profiles}
            models.append(found | {"load_average": os.getloadavg()})
            print(models[-1], flush=True)
            sheet.write(words, "onnxruntime", about | {"models": models})


if __name__ == "__main__":
    sheet.start(main)
