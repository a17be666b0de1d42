"""Every method on the bundled model, side by side: python benchmarks/methods.py [--seeds N] [--bits …] [--methods …].

Calibrated on the digits that trained the model, measured on the held-out ones. Writes methods.json and methods.md, anew
after every row.
"""

import statistics
from dataclasses import dataclass

import sheet

from erq_export.flow import page
from erq_export.flow.compare import layer_error, summary
from erq_export.flow.job import Job, resolve
from erq_export.flow.run import begin
from erq_export.flow.sweep import Calibrated, sweep
from erq_export.flow.ui import SILENT
from erq_export.validate.metrics.margins import margins
from erq_export.validate.runners import TorchRunner

BITS = ("w2a4", "w3a4", "w4a4", "w4a8", "w8a8")
ORDER = ("rtn", "repq", "gptq", "erq")
TARGETS = ("onnx", "tensorrt-rtx")  # the grids must suit both


PAIR = ("erq", "gptq")  # whose decisions are set beside each other, image by image
PAIR_BITS = ("w2a4", "w3a4", "w4a4")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One calibration: its figures, each layer's error, and the held-out images decided unlike the float model."""

    figures: dict[str, float]
    layers: dict[str, float]
    changes: dict[str, int]


def changes(c: Calibrated) -> dict[str, int]:
    """image → class, of the held-out images that the reference puts elsewhere than the float model."""
    got = c.work.reference_decisions(c.artifact, c.held_out).top[:, 0]
    moved = (got != c.work.float_decisions(c.held_out).top[:, 0]).nonzero()[:, 0].tolist()
    return {c.held_out.names[i]: int(got[i]) for i in moved}


def measure(c: Calibrated) -> Measured:
    """On the held-out digits."""
    images = c.held_out
    near = {"logits_error": c.logits_error(images), "agreement": c.agreement(images)}
    return Measured(
        figures={"layer_error": layer_error(c.bundle), "top1": c.top1(images), **near},
        layers={path: row.error for path, row in c.bundle.statistics.items()},
        changes=changes(c),
    )


def job(bits: str, method: str, seeds: int) -> Job:
    """All else as the command line has it."""
    given = {"name": "demo", "bits": bits, "method": method, "targets": TARGETS, "seeds": seeds, "device": "cpu"}
    return resolve(given)


def main() -> None:
    words = sheet.words(__doc__, {"seeds": 5, "bits": BITS, "methods": ORDER})
    names = [(bits, method) for bits in words.bits for method in words.methods]
    jobs = [({"bits": bits, "method": method}, job(bits, method, words.seeds)) for bits, method in names]
    base, rows = job(words.bits[0], "erq", words.seeds), []
    about = {"seeds": words.seeds, "spec": base.method.options, "calib": base.data.calib, "targets": TARGETS}
    about["machine"] = page.machine("erq-export", "torch", "timm", "scikit-learn")
    with sheet.opened(words) as store:
        work = begin(base, SILENT, store)
        images = margins(TorchRunner(work.model.model, work.stages.device), work.labelled, work.labelled.names)
        for name, found in sweep(jobs, measure, store=store):
            figures = summary([m.figures for m in found])
            sheet.show(name, figures)
            layers = {path: statistics.fmean(m.layers[path] for m in found) for path in found[0].layers}
            rows.append({**name, **figures, "layers": layers, "decisions": [m.changes for m in found]})
            sheet.write(
                words,
                "methods",
                about | images.about([row for row in rows if row["bits"] in PAIR_BITS], PAIR) | {"rows": rows},
            )


if __name__ == "__main__":
    sheet.start(main, threads=1)
