"""Who runs what in `make test`: long files first, what a dead worker left by another, the test it died in once more.

pytest-xdist 3.8 hands back what the dead worker had finished, too, and then waits forever (its issues 1323, 1327, 1378).

On some machines about one worker a run is killed while it waits for a child process: SIGSEGV with si_code SI_KERNEL, behind
the system call, no handler is called, and the same test passes in the next worker. A test in which two workers die fails.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

# Longest first. xdist begins with the files that have most tests, and would leave one worker with these at the end.
LONG = ("tests/whole/test_docs.py", "tests/flow/test_detection.py", "tests/flow/test_kills.py")
AGAIN = "Skipped: the worker died; the test was run once more in another, where its outcome counts"


class Scheduling(LoadFileScheduling):
    """Files to workers, with what is missing in xdist."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.died_in: set[str] = set()

    def _assign_work_unit(self, node: WorkerController) -> None:
        """The next file: one of the long ones as long as there is one."""
        for file in reversed(LONG):
            if file in self.workqueue:
                self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)

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
