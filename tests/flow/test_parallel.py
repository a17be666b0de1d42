"""Workers beside a run: what they are left with when it ends."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import active_children

import pytest
from kill_runs import members

from erq_export.flow.parallel import fill

AT_MOST_S = 10.0
SCRIPT = """
import os, sys
from test_parallel import sleep_side_by_side
os.setpgid(0, 0)
sleep_side_by_side()
"""


def sleep_side_by_side() -> None:
    """Two workers: a short piece each, after which both are known to run, and a long one."""
    pieces = [partial(time.sleep, s) for s in (0.01, 0.01, 600, 600)]
    fill(pieces, workers=2, progress=lambda n: print(n, flush=True))  # type: ignore[arg-type] # noqa: T201


def test_workers_end_with_the_run_that_is_killed() -> None:
    """They wait for work on a pipe of which each holds an end, too: nothing but themselves would end them."""
    path = [*sys.path, str(__file__).rpartition("/")[0]]
    program = f"import sys; sys.path[:] = {path!r}\n{SCRIPT}"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        while run.stdout.readline().strip() != "2":
            assert run.poll() is None
        assert len(members(run.pid)) >= 3, "the run, and two workers"
        run.send_signal(signal.SIGKILL)
        run.wait()
        end = time.monotonic() + AT_MOST_S
        while members(run.pid) and time.monotonic() < end:
            time.sleep(0.05)
        left = members(run.pid)
        if left:
            os.killpg(run.pid, signal.SIGKILL)
        assert left == []


def test_workers_end_at_once_where_the_run_is_interrupted() -> None:
    """Ctrl-C while progress is told: the pieces of ten minutes are not waited for, and no worker is left."""

    def interrupted(n: int) -> None:
        if n == 2:
            raise KeyboardInterrupt

    pieces = [partial(time.sleep, s) for s in (0.01, 0.01, 600, 600)]
    begin, before = time.monotonic(), set(active_children())
    with pytest.raises(KeyboardInterrupt):
        fill(pieces, workers=2, progress=interrupted)  # type: ignore[arg-type]
    assert time.monotonic() - begin < 60
    assert set(active_children()) <= before
