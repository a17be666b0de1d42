"""An output folder from elsewhere: no manifest and no link leads to a file outside."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from output_runs import PLANNED, check_ended, fake_run, files_below, write_run

from erq_export.contract.errors import OutputError
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.output.owned import save_manifest
from erq_export.contract.records import encode
from erq_export.contract.run_manifest import OwnedFile, Placement

HASH = "0" * 64


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished run of seed 1."""
    fake_run(tmp_path / "out", 1)
    return tmp_path / "out"


@pytest.mark.parametrize(
    "path",
    ["/etc/x", "../x", "a/../../x", "a//b", "", ".", "a/.", ".hidden", "a\\b", "a\n", "a/", "manifest.json", "\0"],
)
def test_no_manifest_names_a_file_outside(path: str, out: Path) -> None:
    plain = json.loads(encode(OutputFolder(out).read_run_manifest()))
    plain["files"].append({"path": path, "bytes": 0, "sha256": HASH})
    (out / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(OutputError, match="no run of erq-export"):
        OutputFolder(out).check(overwrite=True, planned=PLANNED)


def link_parent(out: Path, outside: Path) -> None:
    (out / "bundle").rename(outside / "bundle")
    (out / "bundle").symlink_to(outside / "bundle")


def link_file(out: Path, outside: Path) -> None:
    (out / "run.json").rename(outside / "run.json")
    (out / "run.json").symlink_to(outside / "run.json")


def link_target(out: Path, outside: Path) -> None:
    (out / "tensorrt").symlink_to(outside)


def link_report(out: Path, outside: Path) -> None:
    (out / "report.svg").symlink_to(outside / "new")


def link_manifest(out: Path, outside: Path) -> None:
    (out / "manifest.json").rename(outside / "manifest.json")
    (out / "manifest.json").symlink_to(outside / "manifest.json")


def link_lock(out: Path, outside: Path) -> None:
    (outside / "lock").write_text("precious")
    (out / ".erq-export.lock").symlink_to(outside / "lock")


@pytest.mark.parametrize("plant", [link_parent, link_file, link_target, link_report, link_manifest, link_lock])
def test_no_link_leads_to_a_file_outside(plant: Callable[[Path, Path], None], out: Path, tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / "x").write_text("precious")
    plant(out, outside)
    before = files_below(outside)
    folder = OutputFolder(out)
    with pytest.raises(OutputError), folder.begin(overwrite=True, planned=folder.planned(["tensorrt"])) as writing:
        write_run(writing, 2)
    assert files_below(outside) == before


def test_a_link_planted_during_the_work_is_not_followed(out: Path, tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    begun = OutputFolder(out).begin(overwrite=True)
    with pytest.raises(OutputError, match="not from a run"), begun as writing:  # noqa: PT012
        (out / "tensorrt").symlink_to(outside)
        writing.place("tensorrt", lambda folder: (folder / "x").write_text("1"))
    assert list(outside.iterdir()) == []


def test_leftovers_that_are_links_are_not_followed(out: Path, tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / "x").write_text("precious")
    (out / ".erq-export-partial-0123456789abcdef").symlink_to(outside)
    manifest = OutputFolder(out).read_run_manifest()
    arriving = (OwnedFile(path="x", bytes=8, sha256=HASH),)
    placing = Placement(staging=".erq-export-partial-0123456789abcdef", arriving=arriving, leaving=())
    save_manifest(out, msgspec.structs.replace(manifest, placing=placing))
    with OutputFolder(out).begin(overwrite=True) as writing:
        write_run(writing, 2)
    assert (outside / "x").read_text() == "precious"
    assert not (out / "x").exists()


def test_the_folder_may_be_a_link_and_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (real := tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(real)
    fake_run(tmp_path / "link", 1)
    check_ended(real, 1, {})
    monkeypatch.chdir(real)
    for name in (".", "../link", "./"):
        fake_run(Path(name), 2)
        check_ended(real, 2, {})
    assert (tmp_path / "link").is_symlink()


def test_a_folder_that_can_never_be_renamed_is_written(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mount point, where none can be made: every rename of the folder itself is EBUSY."""
    rename = os.rename

    def busy(source: str | Path, target: str | Path) -> None:
        if Path(source) == out or Path(target) == out:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        rename(source, target)

    monkeypatch.setattr(os, "rename", busy)
    fake_run(out, 2)
    check_ended(out, 2, {})


def test_what_a_killed_run_had_to_remove_is_not_removed_over_a_link(out: Path, tmp_path: Path) -> None:
    """A manifest says that bundle/a is to go, and bundle leads outside, where a file of that name and hash lies."""
    (outside := tmp_path / "outside").mkdir()
    manifest = OutputFolder(out).read_run_manifest()
    leaving = tuple(file for file in manifest.files if file.path == "bundle/a")
    placing = Placement(staging=".erq-export-partial-0123456789abcdef", arriving=(), leaving=leaving)
    kept = tuple(file for file in manifest.files if not file.path.startswith("bundle"))
    save_manifest(out, msgspec.structs.replace(manifest, files=kept, placing=placing))
    (out / "bundle").rename(outside / "bundle")
    (out / "bundle").symlink_to(outside / "bundle")
    before = files_below(outside)
    with OutputFolder(out).resume() as writing:
        writing.write("report.json", b"{}")
    assert files_below(outside) == before
