"""Runs of the command that are killed at random moments of every stage, and started again until they end.

    kill_runs.py ROOT [--rounds N] [--seed N] [--forked] -- WORD ...     erq-export WORD ... in new folders below ROOT

A round is one run in a new folder with a new store, killed once in each of its stages, in order, then left to end. ROUNDS
rounds are held against an unbroken run. --forked: processes fork from here, where torch is loaded, instead of starting anew.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equal_runs import complete, differences

PATIENCE_S = 600.0  # for a run
ORPHANS_S = 20.0  # for workers to notice that nobody waits for them
COST = re.compile(r"^(.+): ([0-9.]+) s, peak memory", re.MULTILINE)
STARTING, REPORTING = "start", "report"  # what lies before the first stage, and behind the last


@dataclass
class Process:
    """One call of the command in a process group of its own; `log` takes what it prints."""

    pid: int
    log: Path
    status: int | None = None

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def kill(self, *, group: bool) -> None:
        """Group: with its workers, as a container that stops; else itself alone, as the kernel does for want of memory."""
        (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def await_line(self, start: str) -> bool:
        """Wait for a line that begins so; False where the process ended before."""
        return self.wait(lambda: f"\n{start}" in f"\n{self.said()}")

    def wait(self, until: Callable[[], bool] = lambda: False, *, at_most_s: float = PATIENCE_S) -> bool:
        """Wait until something is so: True; False where the process ended, or the time was over."""
        end = time.monotonic() + at_most_s
        while not until():
            if self.ended() or time.monotonic() > end:
                return False
            time.sleep(0.004)
        return True


Start = Callable[[list[str], Path, Path], Process]  # words, store, log


def started(words: list[str], store: Path, log: Path) -> Process:
    """The command as a shell starts it."""
    program = [sys.executable, "-m", "erq_export.cli", *words]
    return _child(store, log, lambda: os.execv(sys.executable, program))


def forked(words: list[str], store: Path, log: Path) -> Process:
    """The command in a fork of this process, which has loaded what it needs and runs nothing itself."""

    def work() -> None:
        from erq_export.cli.app import main

        sys.argv = ["erq-export", *words]
        main()

    return _child(store, log, work)


def warm_up() -> None:
    """Load once what every fork needs. None of it starts a thread that a fork would miss."""
    import matplotlib.pyplot  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch._dynamo  # noqa: F401

    from erq_export.cli import app  # noqa: F401
    from erq_export.flow import api, terminal  # noqa: F401


def _child(store: Path, log: Path, work: Callable[[], None]) -> Process:
    log.write_bytes(b"")
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            handle = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.environ["ERQ_EXPORT_STORE"] = str(store)
            work()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    with suppress(OSError):
        os.setpgid(pid, pid)  # in the child too, whichever comes first
    return Process(pid, log)


def members(group: int) -> list[int]:
    """Living processes of a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


@dataclass
class Kept:
    """What a store holds at one moment: finished artifacts and checkpoints, and how long its log is."""

    finished: set[tuple[str, str]]
    checkpoints: dict[Path, int]  # when each was saved
    n_events: int

    @classmethod
    def of(cls, store: Path) -> "Kept":
        home = store / "v1"
        checkpoints = {}
        for path in home.glob("checkpoints/*/*/*@*"):
            checkpoints[path.relative_to(home)] = path.stat().st_mtime_ns
        finished = {(path.parent.parent.name, path.parent.name) for path in home.glob("entries/*/*/entry.json")}
        return cls(finished, checkpoints, len(events(store)))


def events(store: Path) -> list[dict[str, Any]]:
    """What happened in a store, oldest first, as it wrote it."""
    log = store / "v1" / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def done_again(store: Path, kept: Kept) -> list[str]:
    """Finished work of the moment `kept` that was begun anew since, and checkpoints that were written once more."""
    found = [
        f"{event['event']} again: {event['kind']} {event['key'][:12]}"
        for event in events(store)[kept.n_events :]
        if (event["kind"], event["key"]) in kept.finished
    ]
    now = Kept.of(store).checkpoints
    return found + [f"saved again: {path}" for path, saved in kept.checkpoints.items() if now.get(path, saved) != saved]


def made_twice(store: Path) -> list[str]:
    """Artifacts that were finished more than once."""
    made = Counter((event["kind"], event["key"]) for event in events(store) if event["event"] == "made")
    return [f"made {n} times: {kind} {key[:12]}" for (kind, key), n in made.items() if n > 1]


@dataclass
class Tried:
    """What the rounds found."""

    kills: Counter[str] = field(default_factory=Counter)  # by stage
    missed: Counter[str] = field(default_factory=Counter)  # the run had ended before its kill
    problems: list[str] = field(default_factory=list)
    n_checkpoints: int = 0  # that lay there at a kill
    n_orphans: int = 0  # that a kill of the main process alone left behind
    orphans_s: float = 0.0  # until the last of them was gone

    def orphans(self, group: int, n: int, where: str) -> None:
        """Wait for the end of the n processes whose parent was killed just now."""
        killed = time.monotonic()
        while members(group) and time.monotonic() < killed + ORPHANS_S:
            time.sleep(0.01)
        self.n_orphans += n
        self.orphans_s = max(self.orphans_s, time.monotonic() - killed)
        if members(group):
            self.problems.append(f"{where}: workers outlive their parent")
            os.killpg(group, signal.SIGKILL)


def stages_of(log: str, wall_s: float) -> dict[str, float]:
    """Seconds of every stage of a run, in order, with what lies before and behind them."""
    seconds = {name: float(s) for name, s in COST.findall(log)}
    around = max(wall_s - sum(seconds.values()), 0.2)
    return {STARTING: 0.7 * around, **seconds, REPORTING: 0.3 * around}


def moments(stages: dict[str, float], chance: random.Random) -> Iterator[tuple[str, str, float]]:
    """A moment of each stage: its name, the line to wait for, seconds from there."""
    last = list(stages)[-2]
    for name, seconds in stages.items():
        line = {STARTING: "", REPORTING: f"{last}: "}.get(name, f"{name} …")
        yield name, line, chance.uniform(0, seconds)


def try_round(start: Start, words: list[str], at: Path, stages: dict[str, float], seed: int, tried: Tried) -> None:
    """One run that is killed in each stage and then ends; at/out, at/store."""
    chance, store = random.Random(seed), at / "store"
    words = [*words, "--out", str(at / "out")]
    history: list[Kept] = []
    for i, (name, line, delay) in enumerate(moments(stages, chance)):
        process = start(words, store, at / f"{i}.log")
        if not process.await_line(line):
            alive = False
        elif name == "calibrate" and seed % 2:
            n_blocks = chance.randint(1, 3)
            alive = process.wait(lambda n=n_blocks: len(Kept.of(store).checkpoints) >= n)
        else:
            process.wait(at_most_s=delay)
            alive = not process.ended()
        if not alive:
            if process.status != 0:
                tried.problems.append(f"{at.name}, {name}: ended with {process.status}: {process.said()[-800:]}")
            tried.missed[name] += 1
            break
        others = [pid for pid in members(process.pid) if pid != process.pid]
        group = chance.random() < 0.5
        process.kill(group=group)
        tried.kills[name] += 1
        if not group and others:
            tried.orphans(process.pid, len(others), at.name)
        history.append(Kept.of(store))
        if complete(at / "out"):
            break
    else:
        process = start(words, store, at / "end.log")
        process.wait()
        if process.status != 0:
            tried.problems.append(f"{at.name}: ended with {process.status}: {process.said()[-800:]}")
    tried.n_checkpoints += sum(len(kept.checkpoints) for kept in history)
    tried.problems += [f"{at.name}: {line}" for kept in history for line in done_again(store, kept)]
    tried.problems += [f"{at.name}: {line}" for line in made_twice(store)]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--forked", action="store_true")
    parser.add_argument("words", nargs="+")
    asked = parser.parse_args()
    os.environ["PYTHONUNBUFFERED"] = "1"
    start: Start = started
    if asked.forked:
        warm_up()
        start = forked
    whole = asked.root / "whole"
    whole.mkdir(parents=True)
    began = time.monotonic()
    process = start([*asked.words, "--out", str(whole / "out")], whole / "store", whole / "log")
    process.wait()
    assert process.status == 0, process.said()
    stages = stages_of(process.said(), time.monotonic() - began)
    tried = Tried()
    for i in range(asked.rounds):
        at = asked.root / f"round{i}"
        at.mkdir()
        try_round(start, asked.words, at, stages, asked.seed + i, tried)
        tried.problems += [f"{at.name}: {line}" for line in differences(at / "out", whole / "out")]
        print(f"round {i}: {tried.kills.total()} kills, {len(tried.problems)} problems", file=sys.stderr, flush=True)  # noqa: T201
    found = {
        "kills": tried.kills.total(),
        "by stage": tried.kills,
        "missed": tried.missed,
        "checkpoints at kills": tried.n_checkpoints,
        "orphans": tried.n_orphans,
        "orphans gone after s": round(tried.orphans_s, 1),
        "seconds": round(time.monotonic() - began),
        "unbroken": {name: round(s, 1) for name, s in stages.items()},
        "problems": tried.problems,
    }
    print(json.dumps(found, indent=1))  # noqa: T201
    return 1 if tried.problems else 0


if __name__ == "__main__":
    sys.exit(main())
