"""A word that names no device is refused where it is first read: before torch loads, from Python, and in a run's file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import reports
from command_line import MODEL, QUICK, write_images

from erq_export.contract.errors import DataError, SpecError
from erq_export.contract.records import encode
from erq_export.flow.job import read_run, resolve

NO_DEVICES = ["meta", "mps", "xpu:0", "gpu", "CPU", "cuda:-1", "cuda:٣", ""]


def loaded_torch(tmp_path: Path, *words: str) -> tuple[int, str, bool]:
    """(exit code, what was said, did torch load) of the main job in a process of its own."""
    photos = write_images(tmp_path / "photos", 4)
    given = [*MODEL, *QUICK, "--data", str(photos), "--out", str(tmp_path / "out"), *words]
    program = (
        "import sys\n"
        "from erq_export import cli\n"
        f"sys.argv = ['erq-export', *{given!r}]\n"
        "try:\n    cli.main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr, done.stdout.strip().endswith("True")


@pytest.mark.parametrize("name", NO_DEVICES)
def test_the_command_line_refuses_it_before_torch_is_loaded(tmp_path: Path, name: str) -> None:
    code, said, torch = loaded_torch(tmp_path, "--device", name)
    assert code == 2, said
    assert "unknown --device" in said
    assert "\n  fix: " in said
    assert not torch
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_asked_of_torch(tmp_path: Path) -> None:
    code, said, torch = loaded_torch(tmp_path, "--device", "cuda:999")
    assert (code, torch) == (3, True), said
    assert "--device cuda:999: this machine has" in said


@pytest.mark.parametrize("name", NO_DEVICES)
def test_python_and_a_runs_file_are_refused_as_well(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="unknown --device"):
        resolve({"name": "demo", "bits": "w4a4", "device": name})
    data = json.loads(encode(reports.run_record()))
    data["job"]["device"] = name
    (tmp_path / "run.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="unknown --device"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:17"])
def test_every_kind_that_is_known_is_taken(name: str) -> None:
    assert resolve({"name": "demo", "bits": "w4a4", "device": name}).device == name
