"""The paper's table beside ours, for who has ImageNet: python benchmarks/imagenet.py --train DIR --val DIR --out FOLDER.

Calibrates on 32 images of --train, measures top-1 of the float model and of the fake-quant reference on all of --val.
Every result is kept in the store when it is there; started again, the command does only what is missing. --val is one
folder a class, named so that their sorted order is the models' (the n01440764 … of ImageNet), or with --class-map. `erq`
has this project's defaults; `erq-published` turns off what docs/beyond-the-paper.md lists.
"""

import itertools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sheet

from erq_export.calibrate.published.papers import PAPERS
from erq_export.contract.errors import DataError
from erq_export.contract.records import plain_of
from erq_export.contract.registry import METHODS
from erq_export.flow import page
from erq_export.flow.begin import begin
from erq_export.flow.job import Job, resolve
from erq_export.flow.store.store import Store
from erq_export.flow.sweep import sweep
from erq_export.flow.terminal import Terminal
from erq_export.flow.ui import SILENT
from erq_export.models.aliases import ALIASES

PUBLISHED = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))
PUBLISHED["full_precision"] = {name: alias.top1 for name, alias in ALIASES.items() if alias.in_paper}
MODELS = tuple(PUBLISHED["full_precision"])
OWN = ("rounding", "row_steps", "head_ridge", "input_ranges", "weight_percentiles")  # what can be deployed of the paper
PUBLISHED_ERQ = {name: PAPERS["icml"].options[name] for name in OWN}
WAYS: dict[str, dict[str, Any]] = {name: {} for name in METHODS} | {"erq-published": PUBLISHED_ERQ}
DEFAULTS: dict[str, Any] = {
    "train": Path,
    "val": Path,
    "class_map": None,
    "out": Path,
    "checkpoints": None,
    "pretrained": True,
}
DEFAULTS |= {"models": MODELS, "bits": tuple(PUBLISHED["bits"]), "methods": ("erq", "gptq", "repq")}
DEFAULTS |= {"seeds": 1, "calib": 32, "val_images": 0, "device": "auto"}


def checkpoint_of(model: str, folder: Path) -> str:
    """FOLDER/vit_s.safetensors and the like. DataError without one."""
    files = [folder / f"{model}{suffix}" for suffix in (".safetensors", ".pt", ".pth")]
    if not (found := [str(path) for path in files if path.is_file()]):
        raise DataError(f"{folder} has no weights of {model}", fix=f"a file {', '.join(path.name for path in files)}")
    return found[0]


def jobs(words: Any, model: str) -> list[tuple[dict[str, str], Job]]:
    """The alias's defaults, which are the paper's, with what the way changes."""
    given = {name: getattr(words, name) for name in ("calib", "val_images", "seeds", "device", "pretrained")}
    given |= {"name": model, "data": str(words.train), "val": str(words.val)}
    if words.class_map is not None:
        given["class_map"] = str(words.class_map)
    if words.checkpoints is not None:
        given["checkpoint"] = checkpoint_of(model, words.checkpoints)
    found = []
    for bits, way in itertools.product(words.bits, words.methods):
        asked = given | {"bits": bits, "method": way.removesuffix("-published")}
        found.append(({"model": model, "bits": bits, "method": way}, resolve(asked, options=WAYS[way])))
    return found


def deviation(row: page.Row) -> str:
    """What is to be said where the float model is not the published one; "" where nothing is."""
    model, top1, published = row["model"], row["top1"], PUBLISHED["full_precision"][row["model"]]
    if row["weights"] == "random":
        return f"{model} has random weights: its accuracy means nothing"
    if abs(top1 - published) <= PUBLISHED["tolerance"]:
        return ""
    return (
        f"{model} in float32 has {top1:.2f} %, published {published:.2f} %: check the checkpoint, the preprocessing and the"
        f" labels ({row['n_images']} images) before you read on"
    )


def main(given: Sequence[str] | None = None) -> None:
    words, ui = sheet.words(__doc__, DEFAULTS, given), Terminal()
    sheet.check_known("model", words.models, MODELS)
    sheet.check_known("method", words.methods, WAYS)
    chosen = {model: jobs(words, model) for model in words.models}
    with Store.none() as store:
        for (_, job), *_ in chosen.values():  # a missing checkpoint is said now, not after a day
            begin(job, SILENT, store)
    floats: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    report = {name: getattr(words, name) for name in ("models", "bits", "methods", "calib", "seeds", "device")}
    report |= {"machine": page.machine("erq-export", "torch", "timm"), "published": PUBLISHED, "floats": floats}
    with sheet.opened(words) as store:
        for model, rows in chosen.items():
            work = begin(rows[0][1], ui, store)
            top1 = work.float_decisions(work.labelled).top1()
            row = {"model": model, "weights": work.model.identity.weights, "n_images": len(work.labelled), "top1": top1}
            floats.append({**row, "doubt": deviation(row), "identity": plain_of(work.model.identity)})
            print(f"{model} in float32: {floats[-1]['top1']:.2f} %. {floats[-1]['doubt']}", flush=True)
            for name, results in sweep(rows, lambda c: {"top1": c.top1(c.held_out)}, store=store, ui=ui):
                figures = sheet.figures(results)
                sheet.show(name, figures)
                found.append({**name, **figures})
                sheet.write(words, "imagenet", report | {"results": found})


if __name__ == "__main__":
    sheet.start(main)
