"""Which mixed-integer solver pulp can run here. Imports no torch, so that a run without one is refused before it starts."""

from typing import Any

import pulp

from erq_export.contract.errors import MachineError

SOLVERS = ("COIN_CMD", "PULP_CBC_CMD", "HiGHS", "HiGHS_CMD")  # an installed CBC, pulp's own, then HiGHS


def find_solver(
    seconds: float, folder: str, *, what: str = "-O rounding=mipq", fix: str = "or -O rounding=flip, which needs none"
) -> Any:
    """The first solver that pulp can run here: silent, one thread, its files in `folder`. MachineError if there is none, which
    says `what` needs it, and what else to type."""
    known = pulp.listSolvers()
    for name in (s for s in SOLVERS if s in known):
        solver = pulp.getSolver(name, msg=False, timeLimit=seconds, threads=1)
        if solver.available():
            solver.tmpDir = folder
            return solver
    raise MachineError(
        f"{what} needs a mixed-integer solver, and pulp finds neither CBC nor HiGHS",
        fix=f"pip install 'pulp[cbc]' or pip install highspy; {fix}",
    )
