"""Wherever a run is broken off, its folder holds the old run whole, or a new one and a manifest that says what is there."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from erq_export.contract.errors import OutputError
from erq_export.contract.output.folder import OutputFolder

SCRIPT = Path(__file__).parents[1] / "support" / "output_breaks.py"


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that can be had: every file is synced, some ten thousand times."""
    memory = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield base
    shutil.rmtree(base)


@pytest.mark.parametrize("how", ["kills", "interrupts", "fulls", "at-random"])
def test_a_run_that_is_broken_off_loses_nothing_and_the_next_one_ends(how: str, folder: Path) -> None:
    """At every operation on files in turn; and 30 kills from outside. What is checked stands in `check_consistent`."""
    done = subprocess.run([sys.executable, SCRIPT, how, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_runs_do_not_share_a_folder_and_a_dead_one_does_not_hold_it(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path / "out")
    process = subprocess.Popen([sys.executable, SCRIPT, "hold", out.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        for refused in (out.check, lambda: out.begin().__enter__()):
            with pytest.raises(OutputError, match="another erq-export is writing"):
                refused()
    finally:
        process.kill()
        process.wait()
    out.check()
    with out.begin() as writing:
        writing.write("run.json", b"{}")
    assert sorted(p.name for p in out.path.iterdir()) == ["manifest.json", "run.json"]
