"""`erq-export build` killed at random moments: what each kill left of an engine.

    kill_builds.py OUT ROOT [--rounds N] [--seed N]        rounds on copies of the run in OUT, in new folders below ROOT

Each replaces an engine of another batch, every other one that of the run. Forked, so that a round costs its build.
"""

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from kill_runs import forked, warm_up

from erq_export.backends.tensorrt import require
from erq_export.contract.engine import EngineRecord
from erq_export.contract.errors import EngineError
from erq_export.contract.records import read
from erq_export.flow.engines import check_file, check_graph

ENGINE = Path("tensorrt-rtx", "engine", "model.engine")
WHOLE, ABSENT = "whole", "absent"


def words(out: Path, batch: int) -> list[str]:
    return ["build", str(out), "--to", "tensorrt-rtx", "--capability", "8.9", "--batch", f"1,2,{batch}"]


def left(out: Path) -> str:
    """`whole`: engine, record, plan and log of one build;  `absent`: no engine;  else what is wrong."""
    engine = out / ENGINE
    if not engine.exists():
        return ABSENT
    record = read(EngineRecord, engine.with_name("engine.json"))
    try:
        check_file(engine, engine.read_bytes(), record)
        check_graph(engine, engine.parent.parent / "model.onnx", record, wanted=True)
    except EngineError as e:
        return e.problem
    missing = [name for name in ("plan.txt", "build.log") if not (engine.parent / name).exists()]
    return f"no {missing}" if missing else WHOLE


def one(at: Path, run: Path, store: Path, moment_s: float) -> tuple[str, str]:
    """(what one kill left, what the build that follows left). The store holds the graph, and no engine of this batch."""
    shutil.copytree(run, at / "out")
    shutil.copytree(store, at / "store")
    process = forked(words(at / "out", 3), at / "store", at / "log")
    process.wait(at_most_s=moment_s)
    if not process.ended():
        process.kill(group=True)
    found = left(at / "out")
    again = forked(words(at / "out", 3), at / "store", at / "again.log")
    again.wait()
    return found, left(at / "out") if again.status == 0 else again.said()[-400:]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=16)
    asked = parser.parse_args()
    warm_up()
    require("tensorrt_rtx")
    asked.root.mkdir()
    built, store = asked.root / "built", asked.root / "store"
    shutil.copytree(asked.out, built)
    seconds = []
    for batch in (4, 5):  # the first makes the graph, the second shows how long an engine takes
        began = time.monotonic()
        process = forked(words(built, batch), store, asked.root / "log")
        process.wait()
        assert process.status == 0, process.said()
        seconds.append(time.monotonic() - began)
    chance, rounds = random.Random(asked.seed), []
    for i in range(asked.rounds):
        at = asked.root / f"round{i}"
        at.mkdir()
        rounds.append(one(at, asked.out if i % 2 else built, store, chance.uniform(0, seconds[-1])))
    left_by_kill, afterwards = (Counter(found) for found in zip(*rounds, strict=True))
    found = {"left": left_by_kill, "afterwards": afterwards, "build_s": seconds}
    print(json.dumps(found))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
