"""ERQ's options on the bundled model, side by side: python benchmarks/variants.py [--seeds N] [--bits …] [--only …].

Options are judged by what they do on training digits that were not calibrated on; the held-out digits are shown beside.
Writes variants.json and variants.md, anew after every row.
"""

import tomllib
from pathlib import Path
from typing import Any

import sheet

from erq_export.calibrate.problems import layer_problems
from erq_export.flow import page
from erq_export.flow.compare import layer_error, summary
from erq_export.flow.job import Job, resolve
from erq_export.flow.run import begin
from erq_export.flow.store.store import Store
from erq_export.flow.sweep import Calibrated, sweep
from erq_export.flow.ui import SILENT
from erq_export.models.aliases import DEMO_RIDGE

BITS = ("w3a4", "w2a4", "w4a4")
N_TRAIN = 200  # training digits that a variant is judged on, of the 1168 that it was not calibrated on
PAPER_RIDGE = 1e4
VARIANTS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
JUDGED_BY = ("train_deployed_error", "train_logits_error")


def job(bits: str, options: dict[str, Any], seeds: int = 1) -> Job:
    """What a variant changes in the bundled model's settings."""
    given = {"name": "demo", "bits": bits, "targets": ("onnx", "tensorrt-rtx"), "seeds": seeds, "device": "cpu"}
    return resolve(given, options=options)


def measure(c: Calibrated) -> dict[str, float]:
    """Both kinds of digits."""
    train, held_out = c.not_calibrated_on(N_TRAIN), c.held_out
    found = {"layer_error": layer_error(c.bundle), "train_deployed_error": c.deployed_error(train)}
    found |= {"train_logits_error": c.logits_error(train), "train_agreement": c.agreement(train)}
    found |= {"held_out_top1": c.top1(held_out), "held_out_logits_error": c.logits_error(held_out)}
    return found | {"held_out_agreement": c.agreement(held_out)}


def ridge_shares(store: Store) -> dict[str, dict[str, float]]:
    """For every layer of the bundled model: rows, G's mean diagonal, and how many times that 0.1 · 1e4 is (w4a4)."""
    found, asked = {}, job("w4a4", {})
    work = begin(asked, SILENT, store)
    for site, problem in layer_problems(work.model, work.calibration_images(0).pixels, asked.quantization):
        diagonal, rows = (
            float(problem.moments.G.diagonal()[:-1].mean()),
            problem.moments.n_rows,
        )  # the last is the bias's
        found[site.path] = {"rows": rows, "mean_diagonal": diagonal, "times": 0.1 * PAPER_RIDGE / diagonal}
    return found


def better(row: page.Row, rows: list[dict[str, Any]], figure: str) -> str:
    """On how many seeds a variant is below the defaults."""
    base = next(r for r in rows if r["bits"] == row["bits"])
    pairs = list(zip(row[figure]["all"], base[figure]["all"], strict=True))
    return "" if row is base else f"{sum(a < b for a, b in pairs)}/{len(pairs)}"


def main() -> None:
    words = sheet.words(__doc__, {"seeds": 5, "bits": BITS, "only": tuple(VARIANTS)})
    sheet.check_known("variant", words.only, VARIANTS)
    names = [name for name in VARIANTS if name == "defaults" or name in words.only]
    jobs = [({"bits": b, "variant": n}, job(b, VARIANTS[n], words.seeds)) for b in words.bits for n in names]
    rows: list[dict[str, Any]] = []
    about = {
        "seeds": words.seeds,
        "published": VARIANTS["published, ridge 100"],
        "n_train": N_TRAIN,
        "lambda": DEMO_RIDGE,
    }
    about["machine"] = page.machine("erq-export", "torch", "timm", "scikit-learn")
    with sheet.opened(words) as store:
        about["ridge"] = ridge_shares(store)
        for name, found in sweep(jobs, measure, store=store):
            figures = summary(found)
            sheet.show(name, figures)
            rows.append({**name, **figures})
            beside = [row | {"better": {figure: better(row, rows, figure) for figure in JUDGED_BY}} for row in rows]
            sheet.write(words, "variants", about | {"rows": beside})


if __name__ == "__main__":
    sheet.start(main, threads=1)
