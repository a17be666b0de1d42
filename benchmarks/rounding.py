"""Rounding rules beside the optimum, on blocks of real layers: python benchmarks/rounding.py [--seed N] [--out FOLDER].

Random rows and columns of the bundled model's layers, after ERQ's activation step. Writes rounding.json and rounding.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost more than they bring

import torch
from torch import Tensor, nn

from erq_export.backends.machine import processor
from erq_export.calibrate.loop import CHUNK, layer_problem
from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.published.mipq import Answer, Bits, Program, block_program, exact, row_sums, solve
from erq_export.calibrate.published.solver import find_solver
from erq_export.calibrate.ranges import input_grids
from erq_export.calibrate.setting import Setting
from erq_export.calibrate.solve.aqer import weight_shift
from erq_export.calibrate.solve.erq import ridges
from erq_export.calibrate.solve.ridge import Ridge
from erq_export.calibrate.solve.rounding import flip, nearest, paper
from erq_export.calibrate.solve.weight_grid import weight_grid
from erq_export.calibrate.states import stage_moments
from erq_export.contract.files import write_json, write_text
from erq_export.contract.formats.affine import Grid
from erq_export.contract.sites import submodule
from erq_export.contract.spec import DataSpec, ModelSpec
from erq_export.data.calibration_set import calibration_set
from erq_export.data.digits import Digits
from erq_export.flow.job import resolve
from erq_export.models.loading import load
from erq_export.validate.report.markdown import table

BLOCKS = {8: 40, 12: 40, 16: 12}  # columns: rows drawn
SECONDS = 20.0  # per program: enough to end
RULES = {"rtn": nearest, "paper": paper, "flip": flip}
T = TypeVar("T")
NAMES = (*RULES, "mipq", "enumeration")
OPTIONS = ErqOptions()
SPEC = Setting.of(resolve({"name": "vit_s", "bits": "w4a4"}).quantization)  # the paper's λ
CALIB = DataSpec().calib


@dataclass(frozen=True, kw_only=True)
class Layer:
    """W (n, k) after the activation step, its grid (n, 1), and M = G/N (k, k)."""

    path: str
    W: Tensor
    grid: Grid
    M: Tensor


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row's block: the objective and the seconds of every rule, by name, and the solver's status."""

    layer: str
    objective: dict[str, float]
    seconds: dict[str, float]
    status: str


def layers(seed: int) -> list[Layer]:
    """Every layer of the bundled model, as ERQ's weight step meets it."""
    loaded, found = load(ModelSpec(name="demo"), seed=0), []
    data = calibration_set(Digits("train"), loaded.identity.preprocess, n=CALIB, seed=seed)
    hidden = list(data.pixels.split(CHUNK))
    for stage in loaded.stages:
        grids = input_grids(loaded.model, stage, hidden, SPEC)
        moments, hidden = stage_moments(loaded.model, stage, hidden, grids)
        for site in stage.sites:
            linear = cast(nn.Linear, submodule(loaded.model, site.path, nn.Linear))
            problem = layer_problem(linear, moments[site.path], site, SPEC)
            G, k = problem.moments.G, problem.weight.shape[1]
            ridge = Ridge(G, ridges(site.role, OPTIONS.ridge)[0])
            W = (problem.augmented + weight_shift(problem.augmented, problem.moments.D, ridge))[:, :k]
            grid = weight_grid(W, bits=SPEC.bits.w, rules=SPEC.rules)
            found.append(Layer(path=site.path, W=W, grid=grid, M=G[:k, :k] / problem.moments.n_rows))
    return found


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def enumerated(w: Tensor, down: Tensor, up: Tensor, M: Tensor) -> Bits:
    """The best of all 2ᵇ roundings of one row (b,), in float64."""
    choices = torch.cartesian_prod(*[torch.tensor([False, True])] * len(w))  # (2ᵇ, b)
    d = torch.where(choices, up, down) - w
    return tuple(choices[int(((d @ M) * d).sum(1).argmin())].tolist())


def compare(layer: Layer, i: int, columns: Tensor, solver: Any) -> Result:
    """All rules on row i of a layer's columns (b,). The rules of RULES take all rows at once: seconds are per row."""
    W, M = layer.W[:, columns], layer.M[columns][:, columns]
    down, up, _ = layer.grid.neighbours(W)
    bits: dict[str, Bits] = {}
    seconds: dict[str, float] = {}
    for name, rule in RULES.items():
        rounded, took = timed(partial(rule, W, layer.grid, M, OPTIONS.flips))
        bits[name], seconds[name] = tuple((rounded == up)[i].tolist()), took / len(W)

    B, start = range(len(columns)), bits["flip"]

    def solved() -> tuple[Program, Answer]:
        w, lo, hi = (exact(t[i : i + 1])[0] for t in (W, down, up))
        program = block_program(w, lo, hi, start, row_sums(M, B), B)
        return program, solve(program, start, solver)

    (program, answer), seconds["mipq"] = timed(solved)
    bits["mipq"] = answer.bits
    bits["enumeration"], seconds["enumeration"] = timed(lambda: enumerated(W[i], down[i], up[i], M))
    objective = {name: float(program.objective(bits[name])) for name in NAMES}
    return Result(layer=layer.path, objective=objective, seconds=seconds, status=answer.status)


def drawn(chosen: list[Layer], b: int, n: int, seed: int) -> list[Result]:
    """n random rows, layer by layer in turn, each with b random columns of its own."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(chosen), generator=generator).tolist()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        solver = find_solver(SECONDS, folder)
        for turn in range(n):
            layer = chosen[order[turn % len(order)]]
            i = int(torch.randint(len(layer.W), (1,), generator=generator))
            columns = torch.randperm(layer.W.shape[1], generator=generator)[:b].sort().values
            results.append(compare(layer, i, columns, solver))
    return results


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values), "median": statistics.median(values)}


def summary(b: int, results: list[Result]) -> dict[str, Any]:
    """Objectives as shares of round to nearest's, and above the optimum, which enumeration knows."""
    rules = {}
    for name in NAMES:
        reached = [r.objective[name] for r in results]
        best = [r.objective["enumeration"] for r in results]
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
        "flip_against_paper": {
            "better": sum(x < y for x, y in pairs),
            "equal": sum(x == y for x, y in pairs),
            "worse": sum(x > y for x, y in pairs),
        },
        "rules": rules,
    }


def cells(block: dict[str, Any], name: str) -> list[str]:
    """One line of the table."""
    rule = block["rules"][name]
    objective, share, gap = rule["objective"], rule["share_of_rtn"], rule["gap_percent"]
    solved = f"{block['n_solved_to_optimality']} of {block['n_rows']}" if name == "mipq" else ""
    return [
        str(block["columns"]),
        name,
        f"{objective['mean']:.3g} ± {objective['std']:.2g}",
        f"{share['mean']:.3f} ± {share['std']:.3f}",
        f"{gap['mean']:.1f} ± {gap['std']:.1f} (median {gap['median']:.1f})",
        f"{rule['total_gap_percent']:.1f}",
        f"{rule['n_at_optimum']} of {block['n_rows']}",
        f"{rule['median_ms_per_row']:.3g}",
        solved,
    ]


def duel(block: dict[str, Any]) -> str:
    """Row by row, which of the two descents ends lower."""
    counts = block["flip_against_paper"]
    return f"{block['columns']} columns: " + ", ".join(f"{counts[k]} {k}" for k in ("better", "equal", "worse"))


def markdown(report: dict[str, Any]) -> str:
    machine = report["machine"]
    head = ["columns", "rule", "d M dᵀ", "share of rtn", "above optimum, %", "of all rows together, %", "at optimum"]
    rows = [cells(block, name) for block in report["blocks"] for name in NAMES]
    packages = ", ".join(f"{name} {machine[name]}" for name in ("erq-export", "torch", "timm", "scikit-learn", "pulp"))
    return "\n".join(
        [
            "# Rounding rules beside the optimum",
            "",
            f"`python benchmarks/rounding.py --seed {report['seed']}`: random columns of random rows of the bundled model's"
            f" layers, {SPEC.bits}, calibrated on {CALIB} digits, after the activation step; M = G/N. Mean ±"
            " standard deviation over the rows, which come from different layers: compare the shares rather than d M dᵀ.",
            "",
            "- rtn, paper, flip: all rows of the layer's block at once, as they are used; time is per row",
            f"- mipq: the linearised program in {machine['solver']}, from flip's solution, at most {SECONDS:g} s each",
            "- enumeration: all 2ᵇ roundings in one product; it knows the optimum that the others are held against",
            "",
            table([*head, "median ms a row", "solved to optimality"], rows),
            "",
            f"flip against paper, row by row: {'; '.join(duel(block) for block in report['blocks'])}.",
            "",
            f"{machine['processor']}; {machine['threads']} threads; Python {machine['python']}; {packages}.",
            f"The whole run took {report['seconds']:.0f} s.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the calibration images, rows and columns")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder to write")
    args = parser.parse_args()
    start = time.perf_counter()
    chosen, blocks = layers(args.seed), []
    for b, n in BLOCKS.items():
        blocks.append(summary(b, drawn(chosen, b, n, args.seed)))
        for name in NAMES:
            print(*cells(blocks[-1], name), sep="  ", flush=True)
    report = {
        "seed": args.seed,
        "blocks": blocks,
        "seconds": time.perf_counter() - start,
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "solver": find_solver(SECONDS, "").name,
            **{name: version(name) for name in ("erq-export", "torch", "timm", "scikit-learn", "pulp")},
        },
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "rounding.json", report)
    write_text(args.out / "rounding.md", markdown(report))


if __name__ == "__main__":
    main()
