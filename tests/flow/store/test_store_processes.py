"""However many processes work in a store, and however they die: what is kept is whole, and nothing is made twice."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from erq_export.flow.store.entry import Work
from erq_export.flow.store.key import key
from erq_export.flow.store.store import Store

SCRIPT = Path(__file__).parents[2] / "support" / "store_kills.py"


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of small stores, each flushed, take a busy disk a minute."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("mode", ["everywhere", "evicting", "at-random", "together", "crowd", "denied"])
def test_processes_that_die_compete_or_are_denied(mode: str, quick_disk: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, mode, quick_disk], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, "child:" in done.stdout) == (0, False), done.stdout + done.stderr


def test_a_dead_makers_lock_blocks_nobody_and_its_half_is_swept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, SCRIPT, "hold", tmp_path], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "held\n"
        with Store(tmp_path, 1 << 30) as store:
            halves = list((tmp_path / "v1" / "partial").iterdir())
            assert len(halves) == 1, "what a living process makes is not swept"
            assert store.contents() == []
            maker.kill()
            maker.wait()
            wanted = key("bundle", {"weights": "0"}, {"bits": [4, 4]}, "code")  # as the script's
            began = time.monotonic()
            with store.fetch("bundle", wanted, lambda work: None, description="") as entry:
                assert entry.made_now
            assert time.monotonic() - began < 1
    with Store(tmp_path, 1 << 30):
        assert list((tmp_path / "v1" / "partial").iterdir()) == []


def test_two_threads_share_one_making(tmp_path: Path) -> None:
    calls: list[int] = []
    read: list[str] = []

    def make(work: Work) -> None:
        calls.append(1)
        time.sleep(0.1)
        (work.folder / "x").write_text("same")

    with Store(tmp_path, 1 << 30) as store:

        def ask() -> None:
            entry = store.fetch("bundle", "a" * 64, make, description="")
            read.append((entry.folder / "x").read_text())

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(calls), read) == (1, ["same"] * 4)
        assert (store.counts["bundle"].made, store.counts["bundle"].hits) == (1, 3)


def test_who_waits_long_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erq_export.flow.store.lock.PATIENCE_S", 0.05)
    said: list[str] = []
    making = threading.Event()

    def make(work: Work) -> None:
        making.set()
        time.sleep(0.4)

    def never(work: Work) -> None:
        raise LookupError

    first = threading.Thread(
        target=Store(tmp_path, 1 << 30).fetch, args=("bundle", "a" * 64, make), kwargs={"description": ""}
    )
    first.start()
    making.wait()
    with Store(tmp_path, 1 << 30, say=said.append) as store:
        assert not store.fetch("bundle", "a" * 64, never, description="bundle of vit_s").made_now
    first.join()
    assert said == ["waiting for another run, which is making the same bundle of vit_s"]


def test_an_entry_is_closed_by_any_thread(tmp_path: Path) -> None:
    with Store(tmp_path, 1 << 30) as store:
        entry = store.fetch("bundle", "a" * 64, lambda work: None, description="")
        assert store.clear()[0] == []
        thread = threading.Thread(target=entry.close)
        thread.start()
        thread.join()
        assert len(store.clear()[0]) == 1
