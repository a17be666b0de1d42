"""What of an output folder is the run's own, and that nothing else is ever lost."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from output_runs import PLANNED, check_ended, fake_run, files_below, leftovers, wanted, write_run

from erq_export.contract.cost import StageCost
from erq_export.contract.errors import DataError, OutputError
from erq_export.contract.output.folder import OutputFolder

HASH = "0" * 64


def check(out: Path) -> None:
    OutputFolder(out).check(overwrite=True, planned=PLANNED)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished run of seed 1."""
    fake_run(tmp_path / "out", 1)
    return tmp_path / "out"


# ---------------------------------------------------------------- whose it is


@pytest.mark.parametrize("name", ["empty", "new", "deep/er/new", "killed", "volume"])
def test_a_free_folder_is_free_and_checking_changes_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "killed" / ".erq-export-partial-0123456789abcdef" / "bundle").mkdir(parents=True)
    (tmp_path / "killed" / ".erq-export.lock").touch()
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    OutputFolder(tmp_path / name).check()
    assert sorted(p for p in tmp_path.rglob("*") if p.name != ".erq-export.lock") == [
        p for p in before if p.name != ".erq-export.lock"
    ]
    with OutputFolder(tmp_path / name).begin() as writing:
        write_run(writing, 1)
    check_ended(tmp_path / name, 1, {})


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OutputError])
@pytest.mark.parametrize("in_fill", [True, False])
def test_a_run_that_fails_before_its_first_files_leaves_nothing(
    error: type[BaseException], in_fill: bool, tmp_path: Path
) -> None:
    failure = OutputError("x", fix="y") if error is OutputError else error()

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise failure

    with pytest.raises(error), OutputFolder(tmp_path / "a" / "b").begin() as writing:  # noqa: PT012
        if in_fill:
            writing.place("bundle", fail)
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_a_later_failure_keeps_what_was_placed_and_says_that_the_run_did_not_end(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError

    out = OutputFolder(tmp_path / "out")
    with pytest.raises(ValueError), out.begin() as writing:  # noqa: PT011, PT012
        writing.write("run.json", b"{}")
        writing.place("onnx", fail)
    assert set(files_below(out.path)) == {"run.json", "manifest.json"}
    assert leftovers(out.path) == []
    assert not out.read_run_manifest().complete
    with pytest.raises(OutputError, match="another run, which did not end"):
        out.check()


@pytest.mark.parametrize("stand_in", [{"run.json": "{}"}, {"manifest.json": "{}"}, {"manifest.json": '{"format": 1}'}])
def test_a_folder_is_a_run_only_by_a_valid_manifest(stand_in: dict[str, str], tmp_path: Path) -> None:
    for name, text in {**stand_in, "thesis.tex": "years of work"}.items():
        (tmp_path / name).write_text(text)
    before = files_below(tmp_path)
    for overwrite in (False, True):
        for refused in (OutputFolder(tmp_path).check, lambda **k: OutputFolder(tmp_path).begin(**k).__enter__()):
            with pytest.raises(OutputError, match=r"no run of erq-export") as caught:
                refused(overwrite=overwrite)
            assert "--out" in caught.value.fix
    with pytest.raises(OutputError, match="holds no run"):
        OutputFolder(tmp_path).resume().__enter__()
    assert files_below(tmp_path) == before
    assert leftovers(tmp_path) == []


def test_another_run_is_not_overwritten_unasked(out: Path) -> None:
    before = files_below(out)
    with pytest.raises(OutputError, match="another run") as caught:
        OutputFolder(out).check()
    assert "--overwrite" in caught.value.fix
    with pytest.raises(OutputError, match="another run"):
        OutputFolder(out).begin().__enter__()
    check(out)
    assert files_below(out) == before


def test_an_old_run_stays_until_the_first_files_of_the_new_one_are_complete(out: Path) -> None:
    before = files_below(out)

    def fill(folder: Path) -> None:
        (folder / "a").write_text("new")
        assert files_below(out) == before

    with OutputFolder(out).begin(overwrite=True) as writing:
        writing.record(versions={"x": "1"})
        assert files_below(out) == before
        writing.place("bundle", fill)
        assert set(files_below(out)) == {"bundle/a", "manifest.json"}
    assert OutputFolder(out).read_run_manifest().versions == {"x": "1"}


TREES = st.dictionaries(
    st.lists(
        st.sampled_from(["bundle", "onnx", "engine", "sub", "mine", ".x", "ü", "a b"]), min_size=1, max_size=3
    ).map(lambda parts: "/".join([*parts, "note"])),
    st.binary(max_size=20),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(mine=TREES, seeds=st.lists(st.integers(2, 9), min_size=1, max_size=3))
def test_files_of_the_user_are_never_lost(mine: dict[str, bytes], seeds: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        fake_run(out, 1)
        for name, data in mine.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)
        for seed in seeds:
            fake_run(out, seed)
            assert {name: (out / name).read_bytes() for name in mine} == mine
            visible = {name: data for name, data in mine.items() if not name.startswith(".")}
            now = files_below(out)
            del now["manifest.json"]
            assert now == wanted(seed) | visible


@pytest.mark.parametrize("name", ["bundle/a", "run.json", "onnx/engine/e"])
def test_a_file_that_was_changed_is_refused_and_named(name: str, out: Path) -> None:
    (out / name).write_bytes(b"with notes of mine")
    before = files_below(out)
    with pytest.raises(OutputError, match=f"{name} changed since") as caught:
        check(out)
    assert "move it away" in caught.value.fix
    with pytest.raises(OutputError, match=f"{name} changed since"):
        fake_run(out, 2)
    assert files_below(out) == before


def test_a_file_that_is_changed_meanwhile_is_kept(out: Path) -> None:
    begun = OutputFolder(out).begin(overwrite=True)
    with pytest.raises(OutputError, match=r"run\.json changed since"), begun as writing:  # noqa: PT012
        (out / "run.json").write_bytes(b"precious")
        before = files_below(out)
        write_run(writing, 2)
    assert files_below(out) == before
    assert leftovers(out) == []


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("name", ["report.svg", "tensorrt-rtx", "tensorrt-rtx/model.onnx"])
def test_a_file_of_the_user_where_the_run_will_write_is_refused_before_the_work(
    name: str, as_folder: bool, out: Path
) -> None:
    path = out / name / "x" if as_folder else out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    folder = OutputFolder(out)
    planned = folder.planned(["tensorrt-rtx"])
    if as_folder and name == "tensorrt-rtx":  # a folder with something of the user's is written into
        folder.check(overwrite=True, planned=planned)
    else:
        with pytest.raises(OutputError, match="not from a run of erq-export"):
            folder.check(overwrite=True, planned=planned)
    with OutputFolder(out).begin(overwrite=True) as writing:
        writing.write("bundle/a", b"")
    assert path.read_bytes() == b"mine"


# ---------------------------------------------------------------- single stages


def test_a_stage_replaces_its_own_target_and_nothing_else(out: Path) -> None:
    (out / "onnx" / "notes").write_bytes(b"mine")
    with OutputFolder(out).resume() as writing:
        writing.place("onnx", lambda folder: (folder / "model.onnx").write_bytes(b"new"))
    expected = {n: d for n, d in wanted(1).items() if not n.startswith("onnx/")}
    now = files_below(out)
    del now["manifest.json"]
    assert now == expected | {"onnx/model.onnx": b"new", "onnx/notes": b"mine"}
    assert {f.path for f in OutputFolder(out).read_run_manifest().files} == {*expected, "onnx/model.onnx"}


def test_resuming_refuses_what_was_changed_before_the_work(out: Path) -> None:
    (out / "onnx" / "model.onnx").write_bytes(b"patched by hand")
    with pytest.raises(OutputError, match=r"onnx/model.onnx changed since"):
        OutputFolder(out).resume(planned=["onnx/model.onnx"]).__enter__()
    with OutputFolder(out).resume(planned=["report.json"]) as writing:
        writing.write("report.json", b"again")
    assert (out / "onnx" / "model.onnx").read_bytes() == b"patched by hand"


def test_what_is_recorded_is_read_again_and_checked(out: Path) -> None:
    with OutputFolder(out).resume() as writing:
        writing.record(timings=[StageCost(name="load", wall_s=1.5, peak_mib=2.0)], weights={"x": HASH})
        with pytest.raises(DataError, match="weights"):
            writing.record(weights={"x": "no hash"})
    manifest = OutputFolder(out).read_run_manifest()
    assert manifest.timings[0].wall_s == 1.5
    assert manifest.weights == {"x": HASH}
    assert str(out) not in (out / "manifest.json").read_text()
