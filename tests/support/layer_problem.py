"""A layer of stored rows as the problem that a method solves, and its solution by any method."""

from typing import Any

from layer_rows import Rows

from erq_export.calibrate.methods.method import method_named, options_of
from erq_export.calibrate.solve.problem import Problem, Solution
from erq_export.contract.registry import resolve_attribute
from erq_export.contract.sites import Role
from erq_export.contract.targets import grid_rules

RIDGE = 100.0


def problem(rows: Rows, role: Role = "fc2", *, w_bits: int = 3, targets: tuple[str, ...] = ("onnx",)) -> Problem:
    return Problem(
        weight=rows.W[:, :-1],
        bias=rows.W[:, -1],
        moments=rows.moments,
        role=role,
        w_bits=w_bits,
        rules=grid_rules(targets),
    )


def solved(method: str, posed: Problem, **options: Any) -> Solution:
    """By the method's own solver; erq at the ridge of these small layers."""
    defaults: dict[str, Any] = {"ridge": RIDGE} if method == "erq" else {}
    solver: Any = resolve_attribute(method_named(method).solver)
    solution: Solution = solver(posed, options_of(method, defaults | options))
    return solution
