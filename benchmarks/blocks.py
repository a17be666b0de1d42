"""Blocks of real layers, rounded by every rule, by the solver, and by trying all roundings."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.problems import layer_problems
from erq_export.calibrate.published.mipq import Answer, Bits, Program, block_program, exact, row_sums, solve
from erq_export.calibrate.published.solver import find_solver
from erq_export.calibrate.solve.erq import ridges
from erq_export.calibrate.solve.rounding import enumerated, flip, nearest, paper
from erq_export.calibrate.solve.weight_grid import weight_grid
from erq_export.calibrate.solve.wide_ridge import ridge_of, shift_of
from erq_export.contract.formats.affine import Grid
from erq_export.flow.begin import begin
from erq_export.flow.job import resolve
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT

SECONDS = 20.0  # per program: enough to end
RULES = {"rtn": nearest, "paper": paper, "flip": flip}
PAPER_RIDGE = 1e4
OPTIONS = ErqOptions(ridge=PAPER_RIDGE)
SPEC = resolve({"name": "demo", "bits": "w4a4"}, options={"ridge": PAPER_RIDGE})
T = TypeVar("T")


class Layer(NamedTuple):
    """W (n, k) after the activation step, its grid (n, 1), and M = G/N (k, k)."""

    path: str
    W: Tensor
    grid: Grid
    M: Tensor


class Result(NamedTuple):
    """One row's block: the objective and the seconds of every rule, by name, and the solver's status."""

    layer: str
    objective: dict[str, float]
    seconds: dict[str, float]
    status: str


def layers(seed: int) -> list[Layer]:
    """Every layer of the bundled model behind ERQ's activation step."""
    found, work = [], begin(SPEC, SILENT, Store.none())
    pixels = work.calibration_images(seed).pixels
    for site, problem in layer_problems(work.model, pixels, SPEC.quantization):
        moments, G, k = problem.moments, problem.moments.G, problem.weight.shape[1]
        ridge = ridge_of(moments, G, ridges(site.role, PAPER_RIDGE, OPTIONS)[0])
        W = (problem.augmented + shift_of(problem.augmented, moments, ridge))[:, :k]
        grid = weight_grid(W, bits=problem.w_bits, rules=problem.rules)
        found.append(Layer(site.path, W, grid, M=G[:k, :k] / problem.moments.n_rows))
    return found


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def compare(layer: Layer, i: int, columns: Tensor, solver: Any) -> Result:
    """All rules on row i of a layer's columns (b,). The rules of RULES take all rows at once: seconds are per row."""
    W, M = layer.W[:, columns], layer.M[columns][:, columns]
    down, up, _ = layer.grid.neighbours(W)
    bits, seconds = dict[str, Bits](), dict[str, float]()
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
    objective = {name: float(program.objective(found)) for name, found in bits.items()}
    return Result(layer=layer.path, objective=objective, seconds=seconds, status=answer.status)


def drawn(chosen: list[Layer], b: int, n: int, seed: int) -> list[Result]:
    """n random rows, layer by layer in turn, each with b random columns of its own."""
    generator, results = torch.Generator().manual_seed(seed), []
    order = torch.randperm(len(chosen), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as folder:
        solver = find_solver(SECONDS, folder)
        for turn in range(n):
            layer = chosen[order[turn % len(order)]]
            i = int(torch.randint(len(layer.W), (1,), generator=generator))
            columns = torch.randperm(layer.W.shape[1], generator=generator)[:b].sort().values
            results.append(compare(layer, i, columns, solver))
    return results
