"""A worker that dies costs a run neither its end nor a test; files that take long are begun first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lost_workers import LONG

ROOT = Path(__file__).parents[2]
DIES = """
import os, pathlib, signal, time
def test_before(): pass
def test_dies():
    if {when}:
        pathlib.Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
{behind}
"""
SLOW = """
import pathlib, time
def pytest_collection():
    if pathlib.Path("died").exists():
        time.sleep(3)
"""
OTHER = """
import time
def test_one(): time.sleep(0.2)
def test_two(): time.sleep(0.2)
"""


@pytest.mark.parametrize("behind", ["", "def test_behind(): pass"], ids=["last in its file", "not the last"])
@pytest.mark.parametrize(
    ("when", "says", "code"),
    [("not pathlib.Path('died').exists()", "1 skipped", 0), ("True", "1 failed", 1)],
    ids=["once", "always"],
)
def test_what_it_left_is_run_by_another(tmp_path: Path, when: str, says: str, code: int, behind: str) -> None:
    (tmp_path / "conftest.py").write_text(SLOW)  # the others end while a replacement still collects
    (tmp_path / "test_b.py").write_text(DIES.format(when=when, behind=behind))
    for name in ("test_a.py", "test_c.py", "test_d.py", "test_e.py"):
        (tmp_path / name).write_text(OTHER)
    ran = run_in(tmp_path, "-n", "2", "-rA")
    n = 9 + bool(behind) + (code == 0)
    assert (ran.returncode, says in ran.stdout, f"{n} passed" in ran.stdout) == (code, True, True), ran.stdout


def test_long_files_are_begun_first(tmp_path: Path) -> None:
    """However few tests they have."""
    assert all((ROOT / file).is_file() for file in LONG)
    for file in ("test_a.py", "test_b.py", LONG[-1], LONG[0]):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("def test_one(): pass\n" if file in LONG else OTHER)
    ran = run_in(tmp_path, "-n", "1", "-v")
    passed = [line.split()[-1].partition("::")[0] for line in ran.stdout.splitlines() if " PASSED " in line]
    assert passed == [LONG[0], LONG[-1], "test_a.py", "test_a.py", "test_b.py", "test_b.py"], ran.stdout


def run_in(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """pytest as `make test` has it."""
    given = ["--dist", "loadfile", "--max-worker-restart", "4", "-p", "lost_workers", "--rootdir", "."]
    path = os.pathsep.join([str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, *words, *given, "."],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
