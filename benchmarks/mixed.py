"""Bits by layer on the bundled model: python benchmarks/mixed.py [--seeds N] [--budgets …] [--bits …] [--images N].

Advice: what sensitivities promise for the layer that gives back most, and what a run with that layer at w8a8 regains. Budgets:
--bits auto beside uniform bits of the same mean. Writes mixed.json and mixed.md, anew after every seed.
"""

from collections.abc import Callable
from typing import Any

import sheet
from msgspec import structs

from erq_export.contract.records import plain_of
from erq_export.flow import page
from erq_export.flow.compare import figures
from erq_export.flow.job import Job, resolve
from erq_export.flow.store.store import Store
from erq_export.flow.story import RAISED, tell
from erq_export.flow.sweep import Calibrated, sweep

BITS = ("w2a4", "w3a4")
BUDGETS = (3.0, 4.0)
NUMBERS = ("mean_bits", "logits_error", "top1")
Row = dict[str, Any]


def job(words: Any, seed: int, bits: str, **more: Any) -> Job:
    """The bundled model, calibrated once, measured on `images` of its held-out digits (0: all)."""
    given = {
        "name": "demo",
        "seeds": 1,
        "seed": seed,
        "val_images": words.images,
        "calib": words.calib,
        "device": "cpu",
    }
    return resolve(given | {"bits": bits, "compare": (), **more})


def advice(c: Calibrated) -> Row:
    """Squared errors of the logits, relative: as the run has them, as promised and as found with one layer raised."""
    story = tell(c.work, c.artifact, sensitivity=True)
    if story is None:
        raise ValueError("the demo's images are those that it was calibrated on")
    best = min(story.sensitivity, key=lambda cost: cost.raised)
    asked = structs.replace(c.bundle.spec, bits=c.bundle.spec.bits.over((best.path, RAISED)))
    followed = c.stages.bundle(c.work.model, c.data, asked)
    before, after = (c.stages.logits_error(a, c.work.model, c.held_out) ** 2 for a in (c.artifact, followed))
    return {
        "layer": best.path,
        "error": before,
        "promised": (story.error - best.raised) / story.error,
        "regained": (before - after) / before,
    }


def measured(c: Calibrated) -> Row:
    """One setting on the held-out digits."""
    sizes = {path: layer.weight_q.numel() for path, layer in c.bundle.layers.items()}
    mean = sum(n * c.bundle.layers[path].w_bits for path, n in sizes.items()) / sum(sizes.values())
    found = {"bits": str(c.bundle.spec.bits), "mean_bits": mean, "top1": c.top1(c.held_out)}
    return found | {"logits_error": c.logits_error(c.held_out)}


def advised(bits: str, found: list[Row]) -> Row:
    """A row of the first table: all seeds of one setting."""
    numbers = over_seeds(found, "error", "promised", "regained")
    promised, regained = numbers["promised"], numbers["regained"]
    within = abs(promised["mean"] - regained["mean"]) <= promised["std"] + regained["std"]
    return {"bits": bits, "layers": [row["layer"] for row in found], "within": within, "seeds": len(found)} | numbers


def budgeted(budget: float, auto: list[Row], uniform: list[Row]) -> Row:
    """A row of the second table: all seeds of one budget, chosen and uniform."""
    better = sum(a["logits_error"] < u["logits_error"] for a, u in zip(auto, uniform, strict=True))
    row = {"budget": budget, "better": better, "bits": [found["bits"] for found in auto], "seeds": len(auto)}
    for way, found in (("auto", auto), ("uniform", uniform)):
        row |= {f"{way}_{name}": figure for name, figure in over_seeds(found, *NUMBERS).items()}
    return row


def over_seeds(rows: list[Row], *names: str) -> dict[str, Row]:
    """Mean, deviation and range of each number, as plain data."""
    return {name: plain_of(figures([row[name] for row in rows])) for name in names}


def one(asked: Job, measure: Callable[[Calibrated], Row], store: Store, **name: str) -> Row:
    """A job of one seed, measured."""
    ((_, (found,)),) = sweep([(name, asked)], measure, store=store)
    print(*name.values(), found, flush=True)
    return found


def main() -> None:
    words = sheet.words(
        __doc__, {"seeds": 5, "budgets": BUDGETS, "bits": BITS, "activations": 8, "images": 0, "calib": 32}
    )
    about = {name: getattr(words, name) for name in ("activations", "images", "calib")}
    about["machine"] = page.machine("erq-export", "torch", "timm", "scikit-learn", "pulp")
    auto, uniform = ({budget: list[Row]() for budget in words.budgets} for _ in range(2))
    advices: dict[str, list[Row]] = {bits: [] for bits in words.bits}
    with sheet.opened(words) as store:
        for seed in range(words.seeds):
            for b in words.budgets:
                ask = {"budget": f"{b:g}", "seed": str(seed)}
                bits = f"w{int(b)}a{words.activations}"
                auto[b].append(one(job(words, seed, bits, budget=b), measured, store, **ask, way="auto"))
                uniform[b].append(one(job(words, seed, bits), measured, store, **ask, way="uniform"))
            for bits, rows in advices.items():
                rows.append(one(job(words, seed, bits), advice, store, bits=bits, seed=str(seed)))
            found = {"budgets": [budgeted(b, auto[b], uniform[b]) for b in words.budgets]}
            found["advice"] = [advised(bits, rows) for bits, rows in advices.items()]
            sheet.write(words, "mixed", about | {"seeds": seed + 1} | found)


if __name__ == "__main__":
    sheet.start(main, threads=1)
