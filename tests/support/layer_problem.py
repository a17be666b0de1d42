"""A layer of stored rows as the problem that a method solves."""

from typing import Any

from layer_rows import Rows

from erq_export.calibrate.methods.method import Problem
from erq_export.contract.sites import Role
from erq_export.contract.spec import Bits, QuantSpec

RIDGE = 100.0


def problem(rows: Rows, role: Role = "fc2", **changes: Any) -> Problem:
    spec: dict[str, Any] = {"bits": Bits(w=3, a=3), "targets": ("onnx",), "ridge": RIDGE}
    return Problem(
        weight=rows.W[:, :-1],
        bias=rows.W[:, -1],
        moments=rows.moments,
        role=role,
        w_bits=3,
        spec=QuantSpec(**spec | changes),
    )
