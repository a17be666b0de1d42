"""The command line, run in this process or as a shell starts it."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_vit import TINY, TINY_ARGS

from erq_export.cli import app as cli

MODEL = [TINY, *(word for k, v in TINY_ARGS.items() for word in ("--model-arg", f"{k}={v}"))]


QUICK = ["--bits", "w4a4", "--calib", "4", "--no-pretrained"]


Erq = Callable[..., tuple[int, str]]


@pytest.fixture
def erq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Erq:
    """Runs the command in this process; returns its exit code and everything it printed."""

    def call(*args: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["erq-export", *(str(a) for a in args)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def write_images(folder: Path, n: int, *, size: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def start(*args: Any) -> "subprocess.Popen[str]":
    """The command as a user's shell starts it. A background job of a script ignores Ctrl-C, and so do its children."""
    return subprocess.Popen(
        [sys.executable, "-m", "erq_export.cli", *(str(a) for a in args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
