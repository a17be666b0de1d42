"""A run that is killed anywhere goes on to the same end; so does one beside another, in any folder, on any store."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import write_images
from equal_runs import differences
from kill_runs import Process, events, made_twice, started
from tiny_vit import TINY, TINY_ARGS

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "support" / "kill_runs.py"
DEPTH = 4
N_KILLS = 48


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A whole run: two graphs, an engine, accuracy, a comparison that is too short for workers."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "photos", 6)
    for label in ("ant", "bee"):
        write_images(folder / "val" / label, 3)
    (folder / "classes.txt").write_text("ant\nbee\n")
    model = [word for k, v in (TINY_ARGS | {"depth": DEPTH}).items() for word in ("--model-arg", f"{k}={v}")]
    asked = ["--bits", "w4a4", "-O", "ridge=100", "--to", "onnx", "--to", "tensorrt-rtx", "--capability", "8.9"]
    data = ["--data", str(folder / "photos"), "--calib", "4", "--val", str(folder / "val"), "--compare", "w4a4"]
    data += ["--class-map", str(folder / "classes.txt")]  # two of the model's five classes
    return [TINY, *model, "--no-pretrained", *asked, *data, "--seeds", "1"]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(started([*words, "--out", str(folder / "out")], folder / "store", folder / "log"))
    return folder / "out"


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A folder on which a file system is mounted, as a container's volume: of its own, or else a part of another."""
    folder, other = tmp_path / "volume", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    ways = (["-t", "tmpfs", "tmpfs", folder], ["--bind", other, folder])
    if not any(subprocess.run(["mount", *way], capture_output=True, check=False).returncode == 0 for way in ways):
        pytest.skip("may mount neither a file system nor a folder")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def finish(process: Process, code: int = 0) -> str:
    """Wait for the end, which must be this; what was said."""
    process.wait()
    assert process.status == code, process.said()
    return process.said()


def test_kills_in_every_stage(words: list[str], tmp_path: Path) -> None:
    """Twelve stages, counting what lies before and behind them, four kills in each."""
    command = [sys.executable, SCRIPT, tmp_path / "runs", "--forked", "--rounds", "4", "--", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == N_KILLS, found
    assert set(found["by stage"].values()) == {4}, found
    assert found["checkpoints at kills"] > 0, "no calibration was killed between two blocks"


def test_in_the_current_folder(words: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    finish(started([*words, "--out", "."], tmp_path / "store", tmp_path / "log"))
    assert differences(here, whole) == []


def test_on_a_mounted_volume(words: list[str], whole: Path, volume: Path, tmp_path: Path) -> None:
    finish(started([*words, "--out", str(volume)], tmp_path / "store", tmp_path / "log"))
    assert volume.is_mount()
    assert differences(volume, whole) == []


def test_two_at_once_share_the_work(words: list[str], whole: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    both = [started([*words, "--out", str(out)], tmp_path / "store", out.with_suffix(".log")) for out in outs]
    for process, out in zip(both, outs, strict=True):
        finish(process)
        assert differences(out, whole) == []
    happened = Counter((e["event"], e["key"]) for e in events(tmp_path / "store") if e["kind"] == "bundle")
    assert set(happened.values()) == {1}, happened
    assert sum(event == "made" for event, _ in happened) == 2, "erq and rtn"
    assert made_twice(tmp_path / "store") == []


def test_two_at_once_into_one_folder(words: list[str], whole: Path, tmp_path: Path) -> None:
    """One has the folder; the other says so, and leaves it alone."""
    words = [*words, "--out", str(tmp_path / "out")]
    both = [started(words, tmp_path / "store", tmp_path / f"{i}.log") for i in range(2)]
    for process in both:
        process.wait()
    assert sorted(process.status or 0 for process in both) == [0, 2], [process.said() for process in both]
    (refused,) = (process.said() for process in both if process.status)
    assert "another erq-export is writing into" in refused
    assert "fix:" in refused
    assert differences(tmp_path / "out", whole) == []


def test_the_store_is_deleted_meanwhile(words: list[str], whole: Path, tmp_path: Path) -> None:
    """Twice: between calibration and export, and when all is measured but the comparison."""
    process = started([*words, "--out", str(tmp_path / "out")], tmp_path / "store", tmp_path / "log")
    for stage in ("export", "comparison"):
        assert process.await_line(f"{stage} …"), process.said()
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
    finish(process)
    assert differences(tmp_path / "out", whole) == []
