"""Run by test_store_processes.py in a process of its own: children that work in one store are killed, the rest is checked.

    store_kills.py everywhere ROOT     kill at every single file operation of a fetch, one after the other
    store_kills.py evicting ROOT       the same where an older artifact must go to make room
    store_kills.py at-random ROOT      kill 60 times at random moments (fixed seed) of a longer piece of work
    store_kills.py together ROOT       eight processes want the same artifact at the same moment
    store_kills.py crowd ROOT          four processes, more artifacts than fit: nobody loses what it reads
    store_kills.py denied ROOT         a user who may not write into the store
    store_kills.py hold ROOT           say "held" while making, and wait to be killed

Everything forks from here: this process has one thread and loads nothing heavy, so a child costs milliseconds.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from erq_export.contract.errors import OutputError
from erq_export.flow.store.entry import Work
from erq_export.flow.store.key import key
from erq_export.flow.store.store import Store

N_STEPS = 2
LIMIT = 1 << 30


def key_of(i: int) -> str:
    return key("bundle", {"weights": str(i)}, {"bits": [4, 4]}, "code")


def content(i: int, step: int) -> bytes:
    return bytes([i, step]) * 20_000


def make_in_steps(i: int, saved: Path) -> Callable[[Work], None]:
    """Make artifact i in steps with a checkpoint after each; `saved` gets a line for every checkpoint that was saved."""

    def make(work: Work) -> None:
        for step in range(N_STEPS):
            if work.checkpoints.read(f"step{step}.bin") is None:
                assert work.checkpoints.save(f"step{step}.bin", lambda path, s=step: path.write_bytes(content(i, s)))
                with saved.open("a") as f:
                    f.write(f"{i} {step}\n")
        (work.folder / "deep").mkdir()
        for step in range(N_STEPS):
            data = work.checkpoints.read(f"step{step}.bin").read_bytes()
            (work.folder / "deep" / f"step{step}.bin").write_bytes(data)

    return make


def whole(folder: Path, i: int) -> bool:
    return all((folder / "deep" / f"step{s}.bin").read_bytes() == content(i, s) for s in range(N_STEPS))


def fetch(root: Path, i: int, limit: int = LIMIT) -> None:
    """Fetch artifact i and check every byte of it."""
    with Store(root, limit) as store:
        entry = store.fetch("bundle", key_of(i), make_in_steps(i, root / "saved"), description=f"artifact {i}")
        assert whole(entry.folder, i)


def child(work: Callable[[], None]) -> int:
    """Do `work` in a forked process; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as e:  # noqa: BLE001 (whatever it is, the parent must hear of it)
            print(f"child: {type(e).__name__}: {e}", flush=True)  # noqa: T201
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid: int) -> int:
    """Wait; the exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def nothing_false_is_kept(root: Path, artifacts: range) -> None:
    """Whatever is taken for an entry is whole, and opening the store has removed what the dead left."""

    def never(work: Work) -> None:
        raise LookupError

    with Store(root, LIMIT) as store:
        finished = {item.key for item in store.contents() if item.finished}
        for i in artifacts:
            if key_of(i) in finished:
                with store.fetch("bundle", key_of(i), never, description="") as entry:
                    assert whole(entry.folder, i)
        assert not any(store.counts[kind].damaged for kind in store.counts)
    assert list((root / "v1" / "partial").iterdir()) == []
    assert list((root / "v1" / "locks" / "readers").iterdir()) == []


def dying_at(n: int, work: Callable[[], None]) -> Callable[[], None]:
    """`work` that is killed at its nth file operation, if it gets so far."""

    def die() -> None:
        seen = 0

        def hook(event: str, _: object) -> None:
            nonlocal seen
            if event == "open" or event.startswith(("os.", "fcntl.", "shutil.", "tempfile.")):
                seen += 1  # before the kill, which is an event, too
                if seen == n + 1:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return die


def everywhere(root: Path) -> None:
    """Each child dies one file operation later than the one before, in an empty store, until one survives."""
    n_kills = 0
    while True:
        here = root / str(n_kills)
        here.mkdir()
        status = ended(child(dying_at(n_kills, lambda here=here: fetch(here, 1))))
        nothing_false_is_kept(here, range(1, 2))
        assert ended(child(lambda here=here: fetch(here, 1))) == 0
        saved = Counter((here / "saved").read_text().splitlines())
        assert max(saved.values()) == 1, f"finished steps were done again: {saved}"
        if status == 0:
            break
        assert status == -signal.SIGKILL
        n_kills += 1
    assert n_kills > 50, f"only {n_kills} operations: the hook sees too little"
    print("kills", n_kills)  # noqa: T201


def evicting(root: Path) -> None:
    """There is room for one; artifact 1 was there, and goes for artifact 2: die at each operation of that."""
    fetch(root, 1)
    one = Store(root, LIMIT).contents()[0].size
    limit = one + one // 2
    n_kills = 0
    while True:
        status = ended(child(dying_at(n_kills, lambda: fetch(root, 2, limit))))
        nothing_false_is_kept(root, range(1, 3))
        fetch(root, 2, limit)
        with Store(root, limit) as store:
            assert [item.key for item in store.contents()] == [key_of(2)]
            store.clear()
        fetch(root, 1, limit)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        n_kills += 1
    assert n_kills > 80, n_kills
    print("kills", n_kills)  # noqa: T201


def at_random(root: Path) -> None:
    """Five artifacts in 60 interrupted runs: no finished step is done twice, and at the end all are right."""
    chance = random.Random(14)
    artifacts = range(5)

    def work() -> None:
        for i in artifacts:
            fetch(root, i)

    n_killed = 0
    for _ in range(60):
        pid = child(work)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        n_killed += ended(pid) == -signal.SIGKILL
        nothing_false_is_kept(root, artifacts)
        if chance.random() < 0.1 and (root / "saved").exists():
            with Store(root, LIMIT) as store:  # begin again, so that some runs find much and some nothing
                store.clear()
            (root / "saved").unlink()
    assert ended(child(work)) == 0
    saved = Counter((root / "saved").read_text().splitlines())
    assert max(saved.values()) == 1, saved
    assert n_killed >= 30, n_killed
    print("kills", n_killed)  # noqa: T201


def together(root: Path) -> None:
    """Eight at once: one makes, seven read the same."""
    start = time.time() + 0.2

    def work() -> None:
        time.sleep(max(0.0, start - time.time()))
        fetch(root, 7)

    assert [ended(pid) for pid in [child(work) for _ in range(8)]] == [0] * 8
    events = Counter(event.event for event in Store(root, LIMIT).events())
    assert events == {"begun": 1, "made": 1}, events


def crowd(root: Path) -> None:
    """Six artifacts, room for three, four processes: who holds an entry can read it to the end, whatever the others evict."""
    limit = 3 * (N_STEPS * 40_000 + 2_000)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        with Store(root, limit) as store:
            for _ in range(25):
                i = chance.randrange(6)
                make = make_in_steps(i, root / "saved")
                with store.fetch("bundle", key_of(i), make, description=str(i)) as entry:
                    for _ in range(3):
                        assert whole(entry.folder, i)
                        time.sleep(chance.uniform(0, 0.003))

    assert [ended(pid) for pid in [child(lambda s=s: work(s)) for s in range(4)]] == [0] * 4
    with Store(root, limit) as store:
        store.close()
        assert sum(item.size for item in store.contents()) <= limit
        happened = Counter((event.event, event.key) for event in store.events())
    for i in range(6):
        made, evicted = happened["made", key_of(i)], happened["evicted", key_of(i)]
        assert evicted <= made <= evicted + 1, (i, made, evicted)
    assert sum(n for (event, _), n in happened.items() if event == "evicted") > 10
    assert not any(event == "damaged" for event, _ in happened)


def denied(root: Path) -> None:
    """The folder belongs to another user: refused where it was named, else used around."""
    root.chmod(0o500)

    def work() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)
        said: list[str] = []
        with Store(root / "store", LIMIT, say=said.append) as store:
            assert store.fetch("bundle", key_of(1), lambda work: None, description="").made_now
            assert not store.fetch("bundle", key_of(1), lambda work: None, description="").made_now
        assert len(said) == 1
        assert "Permission denied" in said[0]
        try:
            Store(root / "store", LIMIT, explicit=True)
        except OutputError as e:
            assert "Permission denied" in e.problem  # noqa: PT017 (this script has no pytest)
        else:
            raise AssertionError("not refused")

    assert ended(child(work)) == 0


def hold(root: Path) -> None:
    """Make forever."""

    def make(work: Work) -> None:
        (work.folder / "half").write_text("half")
        print("held", flush=True)  # noqa: T201
        time.sleep(600)

    Store(root, LIMIT).fetch("bundle", key_of(0), make, description="never finished")


if __name__ == "__main__":
    modes = {
        "everywhere": everywhere,
        "evicting": evicting,
        "at-random": at_random,
        "together": together,
        "crowd": crowd,
        "denied": denied,
        "hold": hold,
    }
    modes[sys.argv[1]](Path(sys.argv[2]))
