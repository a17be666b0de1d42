"""torchrun shares held-out images out: the numbers are those of one process, errors are said once, nobody waits for the dead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import MODEL, QUICK, start, write_images
from tiny_vit import TINY_ARGS

from erq_export.contract.records import read
from erq_export.contract.report import Report

N_EACH = 30  # images of a class: 150, five batches


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its report is that of one process."""
    root = tmp_path_factory.mktemp("torchrun")
    for i in range(TINY_ARGS["num_classes"]):
        write_images(root / "val" / f"{i}", N_EACH)
    data = ["--data", write_images(root / "photos", 4), "--val", root / "val"]
    process = start(*MODEL, *QUICK, *data, "--to", "onnx", "--out", root / "out", "--no-store")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return root / "out"


def torchrun(n: int, *words: object) -> "subprocess.CompletedProcess[str]":
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m", "erq_export.cli"]
    return subprocess.run(
        [sys.executable, *command, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_two_processes_give_the_numbers_of_one_to_the_last_digit(run: Path) -> None:
    one = read(Report, run / "report.json")
    assert one.accuracy is not None
    assert one.accuracy.n_images == N_EACH * TINY_ARGS["num_classes"]
    found = torchrun(2, "validate", run, "--no-store")
    assert found.returncode == 0, found.stdout + found.stderr
    two = read(Report, run / "report.json")
    assert two.accuracy == one.accuracy
    assert found.stdout.count("report.json") == 1  # one process speaks


def test_a_bound_that_is_broken_fails_the_first_alone(run: Path) -> None:
    found = torchrun(2, "validate", run, "--no-store", "--max-logit-error", "1e-9")
    assert found.returncode != 0
    assert found.stderr.count("error: ") == 1
    assert "--max-logit-error allows 1e-09" in found.stderr
    assert "exitcode  : 4" in found.stderr
    assert found.stderr.index("error: ") < found.stderr.index("Traceback")  # which is torchrun's own


def test_a_damaged_image_of_the_second_is_named_by_the_first(run: Path, tmp_path: Path) -> None:
    for i in range(TINY_ARGS["num_classes"]):
        write_images(tmp_path / "val" / f"{i}", 10)
    damaged = sorted((tmp_path / "val").rglob("*.png"))[
        41
    ]  # of 50: in the second batch, and not among those of error by depth
    damaged.write_bytes(b"no image")
    found = torchrun(2, "validate", run, "--no-store", "--val", tmp_path / "val")
    assert found.returncode != 0
    assert str(damaged.name) in found.stderr
    assert "process 1 of 2 failed" in found.stderr
