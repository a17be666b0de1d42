"""Everything that only a GPU can show, in one command without network: python benchmarks/gpu.py [--dry-run] [--out FOLDER].

Calibration there beside the CPU (time, equality of the bundles), every graph and engine that runs there beside its float
twin, the demo's accuracy in each runner, a detector's average precision. Full-size models have random weights. A step that
fails is written down with its reason, and the rest still runs. --dry-run: all that needs no GPU, shortened, and what would
follow. Writes gpu-NAME.json and gpu-NAME.md. Not yet run on a GPU.
"""

import re
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sheet
import torch

from erq_export.backends.nvml import gpu_states
from erq_export.calibrate.loop import calibrate
from erq_export.contract.bench import BenchSpec
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import ErqError
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.records import plain_of
from erq_export.flow import bench, page
from erq_export.flow import run as flow
from erq_export.flow.artifacts import Artifact
from erq_export.flow.begin import begin
from erq_export.flow.compare import layer_error
from erq_export.flow.detection import run as detector
from erq_export.flow.heats import Timed, of_classifier
from erq_export.flow.job import Job, resolve
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT
from erq_export.flow.work import Work
from erq_export.models.aliases import SCENES
from erq_export.validate.bench import enter
from erq_export.validate.metrics.decisions import decide

MODELS = ("vit_s", "vit_b", "swin_t")
RTX_SERVES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # compute capabilities of TensorRT-RTX 1.7
DEFAULTS: dict[str, Any] = {
    "models": MODELS,
    "bits": "w4a8",
    "method": "erq",
    "calib": 32,
    "batch": (1, 8, 32),
    "seconds": 10.0,
    "scenes": 100,
}
DRY = {"method": "rtn", "calib": 1, "batch": (1,), "seconds": 0.05, "samples": 10, "scenes": 2}
SAMPLES = 500
NO_GPU = "no GPU here; dry run: this is where CUDA's first call would be"
Row = dict[str, Any]


def job(words: Namespace, model: str, data: str, device: str, **more: Any) -> Job:
    """One that the engine's target runs too, where it serves this GPU. The demo has its own images and weights."""
    given: Row = {"name": model, "bits": words.bits, "calib": words.calib, "device": device, "targets": words.targets}
    given |= {"method": words.method, "seeds": 1, "compare": ()}
    if model != "demo":
        given |= {"pretrained": False, "data": data}
    if "tensorrt-rtx" in words.targets and words.capability:
        given["capability"] = (words.capability,)
    return resolve(given | more)


def gpu(dry_run: bool) -> Row:
    """Its name, its compute capability, and whether TensorRT-RTX builds for it."""
    if not torch.cuda.is_available():
        if not dry_run:
            raise SystemExit("error: torch has no GPU here\n  fix: --dry-run runs what needs none")
        return {"name": "dry-run", "capability": "", "served": "no GPU here", "states": []}
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    served = "yes" if capability in RTX_SERVES else f"no: TensorRT-RTX serves {', '.join(RTX_SERVES)}, not {capability}"
    states = [plain_of(state) for state in gpu_states()]
    return {"name": torch.cuda.get_device_name(), "capability": capability, "served": served, "states": states}


def attempted(step: Callable[[], Row]) -> Row:
    """What the step finds, or why it could not."""
    begun = time.perf_counter()
    try:
        return step() | {"took_s": time.perf_counter() - begun}
    except ErqError as e:
        return {"failed": f"{e.problem} (fix: {e.fix})"}
    except Exception as e:  # noqa: BLE001 - what is unforeseen on an unknown machine is a finding; the rest still runs
        return {"failed": f"{type(e).__name__}: {e}", "traceback": traceback.format_exc()}


def calibrated(asked: Job) -> tuple[Bundle, float]:
    """The bundle and its seconds; nothing is kept, nothing found."""
    with Store.none() as store:
        work = begin(asked, SILENT, store)
        images, device = work.calibration_images(0), work.stages.device
    begun = time.perf_counter()
    bundle = calibrate(work.model, images, asked.quantization, device=device, progress=SILENT.progress)
    return bundle, time.perf_counter() - begun


def calibration(words: Namespace, model: str, data: str) -> Row:
    """On the CPU and on the GPU: time, integers that are equal, errors of the layers."""
    on_gpu = job(words, model, data, "cuda")
    cpu, cpu_s = calibrated(job(words, model, data, "cpu"))
    row: Row = {"model": model, "cpu_s": cpu_s, "cpu_error": layer_error(cpu)}
    if not torch.cuda.is_available():
        return row | {"gpu": NO_GPU}
    calibrated(on_gpu)  # kernels are loaded
    found, gpu_s = calibrated(on_gpu)
    same = [
        (layer.weight_q == found.layers[path].weight_q).double().mean().item() for path, layer in cpu.layers.items()
    ]
    equal = {"equal_least": min(same), "equal_mean": sum(same) / len(same), "gpu_error": layer_error(found)}
    return row | {"gpu_s": gpu_s, **equal}


def made(asked: Job, out: Path, store: Store) -> Work:
    """Calibrate, export and build into the run folder `out`; nothing is measured on the way, as `erq-export MODEL` would."""
    work, folder, targets = begin(asked, SILENT, store), OutputFolder(out), asked.deploy.targets
    with folder.begin(planned=folder.planned(targets), job=plain_of(asked)) as writing:
        bundle = work.stages.bundle(work.model, work.calibration_images(asked.data.seed), asked.quantization)
        flow.place(writing, "bundle", bundle)
        flow.make(work.course, work.stages, asked.deploy, writing, bundle, targets)
    return work


def speed(words: Namespace, model: str, data: str, out: Path, store: Store) -> Row:
    """A run to the nearest integers from one image, since speed does not depend on the values, and its benchmark."""
    asked = job(words, model, data, "cpu", method="rtn", calib=1)
    made(asked, out, store)
    spec = {"batch": tuple(words.batch), "seconds": words.seconds, "samples": words.samples}
    found = bench.bench(asked, out, SILENT, store=store, asked=BenchSpec(**spec))
    return {"model": model, "bench": plain_of(found)}


def accuracy(words: Namespace, out: Path, store: Store) -> Row:
    """Top-1 of the demo in everything that runs its float model, graphs and engines here."""
    asked = job(words, "demo", "", "cpu")
    work = made(asked, out, store)
    if work.held_out is None:
        raise RuntimeError("the demo has no labelled images")
    timed = Timed(
        stages=work.stages,
        model=work.model,
        bundle=Artifact.at(out / "bundle"),
        out=OutputFolder(out),
        targets=words.targets,
    )
    entry, top1 = enter(of_classifier(timed, BenchSpec()).subjects, ("torch",)), dict[str, float | str]()
    for entrant in (e for entrants in entry.by_device.values() for e in entrants):
        try:
            top1[entrant.name] = decide(entrant.how.make(entrant.subject, 1, entrant.name), work.held_out).top1()
        except ErqError as e:
            top1[entrant.name] = e.problem
    return {"top1": top1, "skipped": entry.skipped}


def detection(words: Namespace, out: Path, store: Store) -> Row:
    """Average precision of the small detector in float, as the reference, and in all graphs and engines that run here."""
    given = {"name": "shapes", "bits": words.bits, "method": words.method, "targets": words.targets}
    given |= {"calib": min(SCENES, words.calib), "val_images": words.scenes}
    if "tensorrt-rtx" in words.targets:
        given["capability"] = (words.capability,)
    report = detector.run(resolve(given), out, SILENT, store=store)
    found = report.detection
    if found is None:
        raise RuntimeError("the detector has no labelled pictures")
    every = {"float": found.exact, "reference": found.reference, **found.graphs}
    precision = {name: {"box": one.box.ap, "mask": one.mask.ap} for name, one in every.items()}
    return {"precision": precision, "n_images": found.n_images, "not_run": report.not_verified}


def steps(words: Namespace, folder: Path, store: Store) -> Iterator[tuple[str, Row]]:
    data = sheet.noise(folder, words.calib)
    for model in words.models:
        yield "calibration", {"model": model} | attempted(partial(calibration, words, model, data))
        out = folder / "runs" / model
        yield "speed", {"model": model} | attempted(partial(speed, words, model, data, out, store))
    yield "accuracy", attempted(partial(accuracy, words, folder / "runs" / "accuracy", store))
    yield "detection", attempted(partial(detection, words, folder / "runs" / "detection", store))


def main() -> None:
    words = sheet.words(__doc__, DEFAULTS | {"dry_run": False})
    words.samples = SAMPLES
    if words.dry_run:
        vars(words).update(DRY)
    found = gpu(words.dry_run)
    words.capability = found["capability"]
    words.targets = ("onnx", "tensorrt-rtx") if found["served"] == "yes" else ("onnx",)
    name = re.sub(r"[^a-z0-9]+", "-", found["name"].lower()).strip("-")
    about = {
        "machine": page.machine("erq-export", "onnxruntime-gpu", "torch", "timm"),
        "gpu": found,
        "bits": words.bits,
    }
    rows: dict[str, list[Row]] = {"calibration": [], "speed": [], "accuracy": [], "detection": []}
    with tempfile.TemporaryDirectory() as folder, sheet.opened(words) as store:
        for kind, row in steps(words, Path(folder), store):
            rows[kind].append(row)
            print(kind, row.get("model", ""), row.get("failed", "done"), flush=True)
            sheet.write(words, "gpu", about | {"calib": words.calib} | rows, called=f"gpu-{name.removeprefix('gpu-')}")


if __name__ == "__main__":
    sheet.start(main)
