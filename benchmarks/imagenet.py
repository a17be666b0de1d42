"""The paper's table beside ours, for who has ImageNet: python benchmarks/imagenet.py --train DIR --val DIR --out FOLDER.

Calibrates on 32 images of --train, measures top-1 of the float model and of the fake-quant reference on all of --val.
Every result is written when it is there; started again, the command does only what is missing or was asked otherwise.
--val is one folder a class, named so that their sorted order is the models' (the n01440764 … of ImageNet), or with
--class-map. `erq` has this project's defaults; `erq-published` turns off what docs/beyond-the-paper.md lists.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import torch
from published import MODELS, PUBLISHED, deviation, page
from torch import Tensor, nn

from erq_export.backends.machine import processor
from erq_export.calibrate.loop import calibrate
from erq_export.contract.errors import DataError, ErqError, SpecError
from erq_export.contract.files import write_json, write_text
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.records import plain_of
from erq_export.contract.registry import METHODS, unknown
from erq_export.contract.spec import ModelSpec, Quantization
from erq_export.data.calibration_set import CalibrationSet, calibration_set, check_enough
from erq_export.data.images import ImageFolder
from erq_export.flow.job import resolve
from erq_export.flow.run import device_named
from erq_export.models.loading import Loaded, load
from erq_export.models.rebuild import reference_model
from erq_export.validate.runners import TorchRunner

PUBLISHED_ERQ = {
    "method": "erq",
    "rounding": "paper",
    "row_steps": 0,
    "head_ridge": 1.0,
    "input_ranges": "quantized",
    "weight_percentiles": "repq",
}
WAYS: dict[str, dict[str, Any]] = {**{name: {"method": name} for name in METHODS}, "erq-published": PUBLISHED_ERQ}
BATCH, AHEAD = 32, 2  # images of a batch; batches that are read while one is computed
WEIGHT_FILES = (".safetensors", ".pt", ".pth")
SAY_EVERY_S = 20.0


@dataclass(kw_only=True)
class Bench:
    """What was asked for, checked."""

    words: argparse.Namespace
    train: ImageFolder
    val: ImageFolder
    chosen: list[int]  # of val: all, or evenly spread

    def model(self, name: str) -> ModelSpec:
        folder = self.words.checkpoints
        checkpoint = None if folder is None else str(checkpoint_of(name, folder))
        return ModelSpec(name=name, checkpoint=checkpoint, pretrained=self.words.pretrained)

    def spec(self, model: str, bits: str, way: str) -> Quantization:
        """The alias's defaults, which are the paper's, with what the way changes."""
        options = {name: value for name, value in WAYS[way].items() if name != "method"}
        given = {"name": model, "bits": bits, "targets": ("onnx",), "method": WAYS[way]["method"]}
        return resolve(given, options=options).quantization

    def settings(self, loaded: Loaded) -> dict[str, Any]:
        """Everything that float top-1 depends on: a result with the same settings stands."""
        identity, labels = loaded.identity, self.val.labels or ()
        digest = hashlib.sha256()
        for i in self.chosen:
            digest.update(f"{self.val.name(i)} {labels[i]}\n".encode())
        return {
            "model": identity.timm_name,
            "weights": identity.weights,
            "weights_sha256": identity.weights_sha256,
            "preprocess": identity.preprocess.to_json(),
            "val": {"n_images": len(self.chosen), "names_sha256": digest.hexdigest()},
            "versions": {name: version(name) for name in ("erq-export", "timm")},
        }

    def quantized(self, model: str, spec: Quantization, data: CalibrationSet, what: str) -> float:
        """Top-1 of one calibration's reference. The model is loaded again: calibration consumes it."""
        loaded, device = load(self.model(model), seed=0), device_named(self.words.device)
        bundle = calibrate(loaded, data, spec, device=device, progress=lambda *_: None)
        return self.top1(reference_model(bundle), loaded.identity.preprocess, what)

    def top1(self, model: nn.Module, preprocess: Preprocess, what: str) -> float:
        """Top-1 in per cent of the chosen images, a batch at a time; DataError where a file cannot be read."""
        runner, labels = TorchRunner(model, device_named(self.words.device)), self.val.labels or ()
        right, done, said = 0, 0, time.monotonic()
        for pixels, indices in ahead(self.val, preprocess, self.chosen):
            right += int((runner.logits(pixels).argmax(1) == torch.tensor([labels[i] for i in indices])).sum())
            done += len(indices)
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                print(f"{what}: {done} of {len(self.chosen)} images, {100 * right / done:.2f} % so far", flush=True)
        return 100 * right / done


def ahead(source: ImageFolder, preprocess: Preprocess, chosen: Sequence[int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
    """(pixels, indices) of each batch in order, read by threads a few batches ahead: memory is bounded by them."""
    waiting: deque[tuple[list[Future[Tensor]], Sequence[int]]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(chosen), BATCH):
            indices = chosen[start : start + BATCH]
            waiting.append(([pool.submit(lambda i: preprocess.tensor(source.image(i)), i) for i in indices], indices))
            if len(waiting) > AHEAD:
                futures, indices = waiting.popleft()
                yield torch.stack([f.result() for f in futures]), indices
        for futures, indices in waiting:
            yield torch.stack([f.result() for f in futures]), indices


def checkpoint_of(model: str, folder: Path) -> Path:
    """FOLDER/vit_s.safetensors and the like. DataError without one."""
    found = [path for suffix in WEIGHT_FILES if (path := folder / f"{model}{suffix}").is_file()]
    if not found:
        raise DataError(
            f"{folder} has no weights of {model}",
            fix=f"a file {model}{WEIGHT_FILES[0]} (or {', '.join(WEIGHT_FILES[1:])})",
        )
    return found[0]


def checked(words: argparse.Namespace) -> Bench:
    """Everything that can be wrong is said here, before the first model is measured."""
    for kind, given, known in (("model", words.models, MODELS), ("method", words.methods, WAYS)):
        for name in given:
            if name not in known:
                raise unknown(kind, name, known)
    for name, least in (("seeds", 1), ("val_images", 0), ("calib", 1)):
        if getattr(words, name) < least:
            raise SpecError(f"--{name.replace('_', '-')} {getattr(words, name)}", fix=f"at least {least}")
    device_named(words.device)
    train = ImageFolder(words.train)
    check_enough(train, words.calib)
    val = ImageFolder(words.val, labelled=True, class_map=words.class_map)
    n = len(val) if words.val_images == 0 else min(words.val_images, len(val))
    bench = Bench(words=words, train=train, val=val, chosen=[i * len(val) // n for i in range(n)])
    for model in words.models:  # a missing checkpoint is said now, not after a day
        loaded = load(bench.model(model), seed=0)
        example = torch.zeros(1, *loaded.identity.preprocess.input_size)
        check_classes(val, TorchRunner(loaded.model, torch.device("cpu")).logits(example).shape[1], words.class_map)
        for bits in words.bits:
            for way in words.methods:
                bench.spec(model, bits, way)
    words.out.joinpath("runs").mkdir(parents=True, exist_ok=True)
    return bench


def check_classes(val: ImageFolder, n_classes: int, class_map: Path | None) -> None:
    """Sorted order gives the models' class indices only where every class has its folder. DataError otherwise."""
    folders = len({Path(val.name(i)).parts[0] for i in range(len(val))})
    if class_map is None and folders != n_classes:
        raise DataError(
            f"--val has {folders} class folders, the models have {n_classes} classes: sorted order would give wrong labels",
            fix="--class-map FILE with a line FOLDER INDEX for each folder",
        )
    if max(val.labels or ()) >= n_classes:
        raise DataError(f"--class-map gives class {max(val.labels or ())}", fix=f"indices below {n_classes}")


def kept(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result that lies there, where it is whole and its settings are these."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return found if found.get("settings") == json.loads(json.dumps(settings)) else None


def measure_all(bench: Bench) -> list[dict[str, Any]]:
    """Every result, kept or measured; the page is written again after each."""
    words, results = bench.words, []

    def result(name: str, settings: dict[str, Any], row: dict[str, Any], measured: Callable[[], float]) -> None:
        path = words.out / "runs" / f"{name}.json"
        found = kept(path, settings)
        if found is None:
            start = time.monotonic()
            found = {"settings": settings, **row, "top1": measured()}
            found["wall_s"] = time.monotonic() - start
            write_json(path, found)
            print(f"{name}: {found['top1']:.2f} % in {found['wall_s']:.0f} s", flush=True)
        else:
            print(f"{name}: {found['top1']:.2f} %, kept", flush=True)
        results.append(found)
        write_page(words, results)

    for model in words.models:
        loaded = load(bench.model(model), seed=0)
        preprocess, settings = loaded.identity.preprocess, bench.settings(loaded)
        row = {"model": model, "bits": "float32", "method": "float", "seed": 0}
        name = f"{model}.float"
        result(name, settings, row, partial(bench.top1, loaded.model, preprocess, name))
        if doubt := deviation(results[-1]):
            print(f"\n{'!' * 20} {doubt} {'!' * 20}\n", flush=True)
        for seed in range(words.seeds):
            data = calibration_set(bench.train, preprocess, n=words.calib, seed=seed)
            for bits, way in ((bits, way) for bits in words.bits for way in words.methods):
                spec, name = bench.spec(model, bits, way), f"{model}.{bits}.{way}.{seed}"
                asked = {**settings, "quant": plain_of(spec), "calibration_sha256": data.sha256}
                row = {"model": model, "bits": bits, "method": way, "seed": seed}
                result(name, asked, row, partial(bench.quantized, model, spec, data, name))
    return results


def write_page(words: argparse.Namespace, results: Sequence[dict[str, Any]]) -> None:
    """imagenet.json and imagenet.md of what there is so far."""
    packages = ("erq-export", "torch", "timm")
    machine = {"processor": processor(), "device": words.device, **{name: version(name) for name in packages}}
    write_json(words.out / "imagenet.json", {"machine": machine, "results": list(results)})
    options = {"models": words.models, "bits": words.bits, "methods": words.methods, "calib": words.calib}
    write_text(words.out / "imagenet.md", page(results, machine, **options))


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="folder of training images, searched recursively")
    parser.add_argument("--val", type=Path, required=True, help="validation folder, one folder per class")
    parser.add_argument(
        "--class-map", type=Path, help="file that gives each class folder its index: FOLDER [INDEX] a line"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results; an earlier run there is continued")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help=" ".join(MODELS))
    parser.add_argument("--bits", nargs="+", default=list(PUBLISHED))
    parser.add_argument("--methods", nargs="+", default=["erq", "gptq", "repq"], help=" ".join(WAYS))
    parser.add_argument("--seeds", type=int, default=1, help="calibration seeds, from 0")
    parser.add_argument("--calib", type=int, default=32, help="calibration images")
    parser.add_argument("--val-images", type=int, default=0, help="this many, evenly spread over --val (0: all)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoints", type=Path, help="folder with vit_s.safetensors, deit_t.pth and so on")
    weights.add_argument(
        "--no-pretrained", dest="pretrained", action="store_false", help="random weights: tries the chain"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    try:
        measure_all(checked(parser.parse_args(given)))
    except ErqError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)


if __name__ == "__main__":
    main()
