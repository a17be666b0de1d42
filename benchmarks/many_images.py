"""Does memory stay flat over many held-out images: python benchmarks/many_images.py [--images 22000] [--out FOLDER].

The demo looks at the bundled digits, written as PNG files again and again: as the float model, the reference, and the graph in
ONNX Runtime. After every tenth of the images the process's resident memory is noted. 22,000 are too many to be kept decoded.
Writes many_images.json and many_images.md.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import sheet

from erq_export.data.digits import Digits
from erq_export.data.held_out import REMEMBERED
from erq_export.flow import page
from erq_export.flow.job import resolve
from erq_export.flow.meter import resident_mib
from erq_export.flow.store.store import Store
from erq_export.flow.sweep import Calibrated, sweep
from erq_export.flow.ui import Silent
from erq_export.validate.metrics.decisions import Decisions

POINTS = 10


class Watch(Silent):
    """Notes (images, MiB) of every runner."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, float]]] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        """The first time that another tenth is done."""
        points = self.seen.setdefault(what, [])
        if done * POINTS // total > len(points):
            points.append((done, resident_mib()))
            print(f"{what}: {done} of {total} images, {points[-1][1]:.0f} MiB", flush=True)


def folders(root: Path, n: int) -> str:
    """n files of digits in a folder a class; those of one digit share its bytes."""
    digits = Digits("held_out")
    labels = digits.labels or ()
    for i in range(n):
        j = i % len(digits)
        path, first = root / f"{labels[j]}" / f"{i:06d}.png", root / f"{labels[j]}" / f"{j:06d}.png"
        path.parent.mkdir(exist_ok=True)
        if i == j:
            digits.image(j).save(path)
        else:
            os.link(first, path)
    return str(root)


def measured(c: Calibrated) -> dict[str, Any]:
    """Seconds of each runner, and its memory after every tenth of the images."""
    watch = Watch()
    with Store.none() as store:  # decided anew every time: it is what is measured
        work = replace(c.work, stages=replace(c.stages, ui=watch, store=store))
        graph, found = c.stages.graph(c.artifact, "onnx", "int8"), {}
        runners: dict[str, Callable[[], Decisions]] = {
            "float": lambda: work.float_decisions(c.held_out),
            "reference": lambda: work.reference_decisions(c.artifact, c.held_out),
            "onnxruntime": lambda: work.graph_decisions(graph, c.held_out),
        }
        for name, decisions in runners.items():
            start = time.perf_counter()
            top1 = decisions().top1()
            found[name] = {"seconds": time.perf_counter() - start, "top1": top1, "points": watch.seen[name]}
    channels, height, width = c.work.model.identity.preprocess.input_size
    pixels = {"pixels_mib": 4 * channels * height * width * len(c.held_out) / 2**20, "remembered_mib": REMEMBERED >> 20}
    return {"runners": found, **pixels}


def main() -> None:
    words = sheet.words(__doc__, {"images": 22000})
    with tempfile.TemporaryDirectory() as folder, sheet.opened(words) as store:
        given = {
            "name": "demo",
            "bits": "w4a4",
            "val": folders(Path(folder), words.images),
            "seeds": 1,
            "device": "cpu",
        }
        [(_, [found])] = sweep([({}, resolve(given))], measured, store=store)
    machine = page.machine("erq-export", "torch", "onnxruntime-gpu")
    sheet.write(words, "many_images", {"machine": machine, "images": words.images, **found})


if __name__ == "__main__":
    sheet.start(main)
