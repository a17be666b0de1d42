"""Hooks for runs that outlive their workers: what a dead one left goes to another, and the test it died in is run once more.

pytest-xdist 3.8 hands back what the dead worker had finished, too, and then waits forever (its issues 1323, 1327, 1378).

On some machines about one worker a run is killed while it waits for a child process: SIGSEGV with si_code SI_KERNEL, behind
the system call, no handler is called, and the same test passes in the next worker. A test in which two workers die fails.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

AGAIN = "Skipped: the worker died; the test was run once more in another, where its outcome counts"


class Scheduling(LoadFileScheduling):
    """Files to workers, with what is missing behind a worker's death."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.died_in: set[str] = set()

    def remove_node(self, node: WorkerController) -> str | None:
        """Hands back what is not finished, but for a test in which a worker died before; the test it died in."""
        work = self.assigned_work.pop(node)
        file, died = next(((f, t) for f, tests in work.items() for t, done in tests.items() if not done), ("", None))
        if died in self.died_in:
            work[file][died] = True
        self.workqueue.update({file: tests for file, tests in work.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return died

    def _reschedule(self, node: WorkerController) -> None:
        """A worker begins a test when it knows the next one, or that there is none; one that still collects is asked later."""
        if node not in self.registered_collections:
            return
        super()._reschedule(node)
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)
        if not self.workqueue and not node.shutting_down:
            node.shutdown()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """For --dist loadfile."""
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: object) -> None:
    """The first time a worker dies in a test, its second run decides: it has been handed back."""
    if isinstance(sched, Scheduling) and crashitem not in sched.died_in:
        sched.died_in.add(crashitem)
        report.outcome, report.longrepr = "skipped", (crashitem, 0, AGAIN)
