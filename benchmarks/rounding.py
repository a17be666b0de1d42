"""Rounding rules beside the optimum, on blocks of real layers: python benchmarks/rounding.py [--seed N] [--columns …].

Random rows and columns of the bundled model's layers, after ERQ's activation step. Writes rounding.json and rounding.md.
"""

import operator
import statistics
import time
from typing import Any

import sheet
from blocks import RULES, SECONDS, SPEC, Result, drawn, layers

from erq_export.calibrate.published.solver import find_solver
from erq_export.flow import page

BLOCKS = {8: 40, 12: 40, 16: 12}  # columns: rows drawn
DUEL: dict[str, Any] = {"better": operator.lt, "equal": operator.eq, "worse": operator.gt}
NAMES = (*RULES, "mipq", "enumeration")


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values), "median": statistics.median(values)}


def summary(b: int, results: list[Result]) -> dict[str, Any]:
    """Objectives as shares of round to nearest's, and above the optimum, which enumeration knows."""
    rules = {}
    best = [r.objective["enumeration"] for r in results]
    for name in NAMES:
        reached = [r.objective[name] for r in results]
        rules[name] = {
            "objective": spread(reached),
            "share_of_rtn": spread([x / r.objective["rtn"] for x, r in zip(reached, results, strict=True)]),
            "gap_percent": spread([100 * (x / y - 1) for x, y in zip(reached, best, strict=True)]),
            "total_gap_percent": 100 * (sum(reached) / sum(best) - 1),
            "n_at_optimum": sum(x <= y for x, y in zip(reached, best, strict=True)),
            "median_ms_per_row": 1e3 * statistics.median(r.seconds[name] for r in results),
        }
    pairs = [(r.objective["flip"], r.objective["paper"]) for r in results]
    return {
        "columns": b,
        "n_rows": len(results),
        "n_layers": len({r.layer for r in results}),
        "n_solved_to_optimality": sum(r.status == "optimal" for r in results),
        "flip_against_paper": {word: sum(beats(x, y) for x, y in pairs) for word, beats in DUEL.items()},
        "rules": rules,
    }


def main() -> None:
    words = sheet.words(__doc__, {"seed": 0, "columns": tuple(BLOCKS)})
    sheet.check_known("block of columns", map(str, words.columns), map(str, BLOCKS))
    start, chosen, blocks = time.perf_counter(), layers(words.seed), []
    for b in words.columns:
        blocks.append(summary(b, drawn(chosen, b, BLOCKS[b], words.seed)))
        for name, rule in blocks[-1]["rules"].items():
            sheet.show({"columns": b, "rule": name}, {"objective": rule["objective"], "share": rule["share_of_rtn"]})
    machine = page.machine("erq-export", "torch", "timm", "scikit-learn", "pulp")
    machine["solver"] = find_solver(SECONDS, "").name
    report = {
        "bits": str(SPEC.method.bits),
        "calib": SPEC.data.calib,
        "limit_s": SECONDS,
        "seed": words.seed,
        "blocks": blocks,
        "seconds": time.perf_counter() - start,
        "machine": machine,
    }
    sheet.write(words, "rounding", report)


if __name__ == "__main__":
    sheet.start(main)
