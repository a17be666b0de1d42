"""A stage's files appear at once or not at all, and nothing that was there is lost."""

from pathlib import Path

import pytest

from erq_export.contract.errors import OutputError
from erq_export.contract.files import OutputFolder, staged, write_text


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_a_stage_that_ends_well_is_there(tmp_path: Path) -> None:
    with staged(tmp_path / "a" / "b") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert files_below(tmp_path) == {"a", "a/b", "a/b/x"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stage_that_fails_leaves_nothing_not_even_folders(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staged(tmp_path / "a" / "b") as folder:
            (folder / "x").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert files_below(tmp_path) == set()


def test_the_old_is_kept_until_the_new_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("precious")
    with pytest.raises(ValueError), staged(out):  # noqa: PT011
        raise ValueError
    assert files_below(tmp_path) == {"out", "out/old"}
    with staged(out) as folder:
        (folder / "new").write_text("1")
        assert (out / "old").exists()
    assert files_below(tmp_path) == {"out", "out/new"}


def test_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \udc80")
    assert (path.read_text(), files_below(tmp_path)) == ("old", {"report.md"})
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_new_and_an_empty_folder_are_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "deep/er/new"):
        OutputFolder(tmp_path / name).check(overwrite=False)
    assert files_below(tmp_path) == {"empty"}


def test_another_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(OutputError, match="another run") as caught:
        OutputFolder(tmp_path).check(overwrite=False)
    assert "--overwrite" in caught.value.fix
    OutputFolder(tmp_path).check(overwrite=True)


def test_what_is_no_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="no run of erq-export"):
        OutputFolder(tmp_path).check(overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        OutputFolder(tmp_path / "thesis.tex").check(overwrite=True)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        OutputFolder(tmp_path / "file" / "out").check(overwrite=False)
