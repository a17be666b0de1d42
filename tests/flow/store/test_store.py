"""What is kept is found, checked, used up in order, and counted."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from erq_export.contract.errors import DataError
from erq_export.flow.store.entry import Work
from erq_export.flow.store.shelf import Shelf
from erq_export.flow.store.store import Store

A, B, C, D = ("abcd"[i] * 64 for i in range(4))
ROOM = 1 << 30


def writes(text: str) -> Callable[[Work], None]:
    def make(work: Work) -> None:
        (work.folder / "deep" / "er").mkdir(parents=True)
        (work.folder / "deep" / "er" / "x.txt").write_text(text)
        (work.folder / "empty").write_text("")

    return make


def never(work: Work) -> None:
    raise LookupError("made again")


def use(store: Store, key: str, make: Callable[[Work], None] = never) -> str:
    with store.fetch("bundle", key, make, description=f"artifact {key[0]}") as entry:
        return (entry.folder / "deep" / "er" / "x.txt").read_text()


def kept(store: Store) -> list[str]:
    return [item.key[0] for item in store.contents()]


def test_made_once_and_found_by_this_and_later_stores(tmp_path: Path) -> None:
    with Store(tmp_path, ROOM) as store:
        assert use(store, A, writes("one")) == use(store, A) == "one"
        assert store.counts["bundle"].made == store.counts["bundle"].hits == 1
    with Store(tmp_path, ROOM) as store, store.fetch("bundle", A, never, description="") as entry:
        assert (entry.made_now, entry.size, sorted(entry.files)) == (False, 3, ["deep/er/x.txt", "empty"])
        entry.copy_to(tmp_path / "out")
        (tmp_path / "out" / "empty").write_text("the copy is the user's own")
        assert [(e.event, e.kind, e.key) for e in store.events()] == [("begun", "bundle", A), ("made", "bundle", A)]
    with Store(tmp_path, ROOM) as store:
        assert use(store, A) == "one"


def test_kind_and_key_keep_artifacts_apart(tmp_path: Path) -> None:
    with Store(tmp_path, ROOM) as store:
        use(store, A, writes("one"))
        assert use(store, B, writes("two")) == "two"
        with store.fetch("graph", A, writes("graph"), description="") as entry:
            assert (entry.folder / "deep" / "er" / "x.txt").read_text() == "graph"
        assert use(store, A) == "one"
        with pytest.raises(ValueError, match="key"):
            store.fetch("bundle", "../x", never, description="")


def test_content_names_what_is_in_it_not_when_or_how_it_was_made(tmp_path: Path) -> None:
    with Store(tmp_path, ROOM) as store:
        entries = [store.fetch("bundle", k, writes(t), description=k) for k, t in ((A, "1"), (B, "1"), (C, "2"))]
        assert (entries[0].content == entries[1].content, entries[0].content == entries[2].content) == (True, False)


@pytest.mark.parametrize("error", [ValueError("a bug"), DataError("no images", fix="--data DIR"), KeyboardInterrupt()])
def test_a_makers_error_is_its_own_and_leaves_checkpoints_only(tmp_path: Path, error: BaseException) -> None:
    def fail(work: Work) -> None:
        (work.folder / "half").write_text("half")
        assert work.checkpoints.save("block0.bin", lambda path: path.write_text("block 0"))
        raise error

    def go_on(work: Work) -> None:
        assert work.checkpoints.names() == ["block0.bin"]
        saved = work.checkpoints.read("block0.bin")
        assert saved is not None
        assert list(work.folder.iterdir()) == []
        (work.folder / "deep" / "er").mkdir(parents=True)
        (work.folder / "deep" / "er" / "x.txt").write_text(saved.read_text())

    said: list[str] = []
    with Store(tmp_path, ROOM, say=said.append) as store:
        with pytest.raises(type(error)) as caught:
            use(store, A, fail)
        assert caught.value is error
        assert [(item.key, item.finished) for item in store.contents()] == [(A, False)]
        assert list((tmp_path / "v1" / "partial").iterdir()) == []
        assert "made" not in [event.event for event in store.events()]
        assert use(store, A, go_on) == "block 0"
        assert [(item.key, item.finished) for item in store.contents()] == [(A, True)]
    assert said == []


def test_checkpoints_are_replaced_whole_and_checked(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise ValueError("a bug")

    with Store(tmp_path, ROOM) as store:
        with store.workspace("bundle", A) as work:
            assert work.checkpoints.read("a.npz") is None
            for text in ("one", "two", "two"):
                assert work.checkpoints.save("a.npz", lambda path, t=text: path.write_text(t))
            assert work.checkpoints.save("b", lambda path: path.write_text("b"))
            with pytest.raises(ValueError, match="a bug"):
                work.checkpoints.save("a.npz", fails)
            with pytest.raises(ValueError, match="checkpoint"):
                work.checkpoints.save("../a", fails)
        with store.workspace("bundle", A) as work:
            path = work.checkpoints.read("a.npz")
            assert path is not None
            assert (path.name, path.read_text(), work.checkpoints.names()) == ("a.npz", "two", ["a.npz", "b"])
            path.write_text("twO")
            assert work.checkpoints.read("a.npz") is None
            assert work.checkpoints.read("b") is not None
        assert len(store.clear()[0]) == 1
        with store.workspace("bundle", A) as work:
            assert work.checkpoints.names() == []


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    with Store(tmp_path, ROOM) as store:
        for key in (A, B, C):
            use(store, key, writes(key))
        use(store, A)
        assert kept(store) == ["b", "c", "a"]
        one = store.contents()[0].size
    with Store(tmp_path, 3 * one) as store:
        use(store, D, writes(D))
        assert kept(store) == ["c", "a", "d"]
        assert store.counts["bundle"].evicted == 1
    with Store(tmp_path, 1 * one) as store:
        pass
    assert kept(store) == ["d"]
    assert [event.key[0] for event in store.events() if event.event == "evicted"] == ["b", "c", "a"]


def test_what_is_in_use_stays_even_over_the_limit(tmp_path: Path) -> None:
    with Store(tmp_path, ROOM) as first:
        reading = first.fetch("bundle", A, writes(A), description="artifact a")
        one = first.contents()[0].size
        with Store(tmp_path, one) as second:
            use(second, B, writes(B))
            assert kept(second) == ["a"], "b went when it was closed"
            assert [item.key for item in second.clear()[1]] == [A]
            assert (reading.folder / "deep" / "er" / "x.txt").read_text() == A
        reading.close()
        reading.close()
    with Store(tmp_path, one) as third:
        use(third, C, writes(C))
    assert kept(third) == ["c"]


def test_what_was_used_since_it_was_listed_is_not_removed(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    with Store(tmp_path, ROOM) as store:
        use(store, A, writes("1"))
        (old,) = shelf.items()
        use(store, A)
        assert shelf.remove_if_idle(old) == "in use"
        (new,) = shelf.items()
        assert (shelf.remove_if_idle(new), shelf.remove_if_idle(new)) == ("removed", "gone")


def test_larger_than_the_limit_is_read_then_gone_and_drives_nothing_out(tmp_path: Path) -> None:
    with Store(tmp_path, 4_000) as store:
        use(store, A, writes("small"))
        with store.fetch("bundle", B, writes("large" * 1_000), description="") as entry:
            assert (entry.folder / "deep" / "er" / "x.txt").stat().st_size == 5_000
            assert kept(store) == ["a", "b"]
        assert kept(store) == ["a"]
        assert use(store, A) == "small"


def test_a_store_that_keeps_nothing_still_makes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Store.none() as store:
        assert use(store, A, writes("one")) == use(store, A) == "one"
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_spare_folder_of_a_killed_process_is_removed_by_a_later_one(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from erq_export.flow.store.store import Store; import os, signal;"
        f"Store.none().fetch('bundle', {A!r}, lambda work: os.kill(os.getpid(), signal.SIGKILL), description='')"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    (orphan,) = tmp_path.iterdir()
    script = code.replace("os.kill(os.getpid(), signal.SIGKILL)", "None")
    for age_s, left in ((0, [orphan]), (3600, [])):
        os.utime(orphan, (orphan.stat().st_mtime - age_s,) * 2)
        subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=True)
        assert list(tmp_path.iterdir()) == left


def test_the_spare_folder_of_a_living_process_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Store.none() as one, Store.none() as other:
        use(one, A, writes("1"))
        (folder,) = tmp_path.iterdir()
        os.utime(folder, (folder.stat().st_mtime - 3600,) * 2)
        use(other, A, writes("2"))
        assert use(one, A) == "1"


def test_clear_by_kind_and_age(tmp_path: Path) -> None:
    with Store(tmp_path, ROOM) as store:
        use(store, A, writes("1"))
        use(store, B, writes("2"))
        store.fetch("graph", A, writes("3"), description="a graph").close()
        day = 86_400
        record = tmp_path / "v1" / "entries" / "bundle" / A / "entry.json"
        os.utime(record, (record.stat().st_mtime - 2 * day,) * 2)
        assert [(i.kind, i.key[0]) for i in store.clear(older_than=timedelta(days=1))[0]] == [("bundle", "a")]
        assert [(i.kind, i.key[0]) for i in store.clear("graph")[0]] == [("graph", "a")]
        assert [(i.kind, i.description, i.size > 0) for i in store.contents()] == [("bundle", "artifact b", True)]
        full = store.size()
        assert len(store.clear()[0]) == 1
        assert store.contents() == []
        assert store.size() < full


def test_what_is_not_ours_in_the_stores_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with Store(tmp_path, 1) as store:
        use(store, A, writes("1"))
        stranger = tmp_path / "v1" / "entries" / "bundle" / "notes"
        stranger.mkdir()
        (tmp_path / "v1" / "partial" / "notes").mkdir()
        store.clear()
    with Store(tmp_path, 1):
        assert stranger.exists()
    assert (tmp_path / "thesis.tex").read_text() == "years"
    assert (tmp_path / "v1" / "partial" / "notes").exists()


def test_importing_the_store_is_light() -> None:
    code = "import sys, erq_export.flow.store.store; print({'torch', 'numpy', 'onnx', 'timm', 'asyncio'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
