"""A layer of stored rows as the problem that a method solves."""

from layer_rows import Rows

from erq_export.calibrate.solve.problem import Problem
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
