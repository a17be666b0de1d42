"""Runs broken off at every operation on files, by a kill, an interrupt or an error; a script, as it forks and kills.

Python tells an audit hook of every open, mkdir, rename, remove and rmdir before it is done. The hook counts them, and at
one of them kills the process, or raises what the system would raise.
"""

import errno
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from output_runs import check_consistent, check_ended, fake_run, files_below, leftovers

from erq_export.contract.errors import OutputError
from erq_export.contract.output.folder import OutputFolder

MAKING = frozenset({"open", "os.mkdir", "os.rename"})
CLEANING = frozenset({"os.remove", "os.rmdir"})
OWN = {"notes.txt": b"mine", "onnx/thesis.tex": b"years", "bundle/sub/deep/x": b"z"}
DONE, UNHARMED, REFUSED, INTERRUPTED, FAILED = 0, 5, 7, 130, 99


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = FAILED
        try:
            work()
            code = DONE
        except OutputError as e:
            code = REFUSED if e.fix else 98
        except KeyboardInterrupt:
            code = INTERRUPTED
        finally:
            if code == FAILED:
                traceback.print_exc()
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def break_at(n: int, how: Callable[[], None], work: Callable[[], None]) -> None:
    """Do the work, and `how` at its n-th operation on files. Ends the process as UNHARMED where that was reached in vain."""
    count, events = 0, MAKING if how is full else MAKING | CLEANING

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in events and not (event == "open" and how is full and not _writes(args)):
            count += 1
            if count == n:
                how()

    sys.addaudithook(hook)
    work()
    if count >= n:
        os._exit(UNHARMED)


def _writes(args: tuple[Any, ...]) -> bool:
    """Was a file opened to be written? args: path, mode, flags."""
    return bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def full() -> None:
    """A full disk refuses what makes something; it lets things be read and removed."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def old_run(root: Path, *, with_own: bool) -> dict[str, bytes]:
    """A whole run of seed 1, with files of the user's among it. Returns these."""
    assert ended(child(lambda: fake_run(root, 1))) == DONE
    for name, data in OWN.items() if with_own else ():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return dict(OWN) if with_own else {}


def everywhere(base: Path, how: Callable[[], None], expected: set[int], *, over: bool, own: bool) -> tuple[int, int]:
    """Break a run at its 1st, 2nd, 3rd … operation, until one ends unbroken. Returns how many, and how many left something."""
    n, littered = 0, 0
    while True:
        n += 1
        root = base / f"{n}"
        mine = old_run(root, with_own=own) if over else {}
        before = files_below(root)

        def work(root: Path = root, n: int = n) -> None:
            break_at(n, how, lambda: fake_run(root, 2))

        status = ended(child(work))
        assert status in expected | {DONE, UNHARMED}, (n, status)
        check_consistent(root, before, mine)
        if status != -signal.SIGKILL:
            littered += bool(leftovers(root))
        assert ended(child(lambda root=root: fake_run(root, 3))) == DONE, n
        check_ended(root, 3, mine)
        if status == DONE:
            return n, littered


def kills(base: Path) -> None:
    for name, over, own in (("new", False, False), ("over", True, False), ("own", True, True)):
        n, _ = everywhere(base / name, kill, {-signal.SIGKILL}, over=over, own=own)
        print(name, n)  # noqa: T201


def interrupts(base: Path) -> None:
    for name, over, own in (("new", False, False), ("own", True, True)):
        n, littered = everywhere(base / name, interrupt, {INTERRUPTED}, over=over, own=own)
        assert littered <= 5  # hidden, and swept by the next run: where the cleaning up itself is interrupted
        print(name, n, "littered", littered)  # noqa: T201


def fulls(base: Path) -> None:
    for name, over, own in (("new", False, False), ("own", True, True)):
        n, littered = everywhere(base / name, full, {REFUSED}, over=over, own=own)
        assert littered == 0
        print(name, n)  # noqa: T201


def at_random(base: Path) -> None:
    """40 kills from outside, each after another over the same folder; then a run that ends."""
    chance, root, n_killed = random.Random(14), base / "out", 0
    mine = old_run(root, with_own=True)
    for seed in range(2, 52):
        before = files_below(root)
        pid = child(lambda seed=seed: fake_run(root, seed, lambda: time.sleep(0.001)))
        time.sleep(chance.uniform(0, 0.015))
        os.kill(pid, signal.SIGKILL)
        n_killed += ended(pid) == -signal.SIGKILL
        check_consistent(root, before, mine)
    assert n_killed >= 30, n_killed
    assert ended(child(lambda: fake_run(root, 77))) == DONE
    check_ended(root, 77, mine)
    print("kills", n_killed)  # noqa: T201


def hold(base: Path) -> None:
    """Write forever."""
    with OutputFolder(base).begin():
        print("held", flush=True)  # noqa: T201
        time.sleep(600)


if __name__ == "__main__":
    modes = {"kills": kills, "interrupts": interrupts, "fulls": fulls, "at-random": at_random, "hold": hold}
    modes[sys.argv[1]](Path(sys.argv[2]))
