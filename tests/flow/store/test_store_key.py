"""Equal content has equal keys everywhere; any difference in what an artifact is made of gives another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erq_export.flow.store.key import KEY, code_hash, key

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ONE = ("bundle", {"weights": "1f", "images": "2e"}, {"bits": (4, 8), "ridge": 0.1}, "c0de")


def test_equal_in_another_process_whatever_the_order_of_names() -> None:
    code = (
        "from erq_export.flow.store.key import key, code_hash;"
        "print(key('bundle', {'images': '2e', 'weights': '1f'}, {'ridge': 0.1, 'bits': [4, 8]}, 'c0de'));"
        "print(code_hash('erq_export.flow', 'erq_export.contract.errors'))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        answer = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert answer.stdout.split() == [key(*ONE), code_hash("erq_export.contract.errors", "erq_export.flow")]


@pytest.mark.parametrize(
    "other",
    [
        ("graph", *ONE[1:]),
        (ONE[0], {"weights": "1f", "images": "2f"}, *ONE[2:]),
        (ONE[0], {"weights": "1f"}, *ONE[2:]),
        (ONE[0], {"images": "1f", "weights": "2e"}, *ONE[2:]),
        (*ONE[:2], {"bits": (4, 4), "ridge": 0.1}, ONE[3]),
        (*ONE[:2], {"bits": (4, 8), "ridge": 0.1, "more": None}, ONE[3]),
        (*ONE[:2], {"bits": (4, 8.0), "ridge": 0.1}, ONE[3]),
        (*ONE[:3], "c0df"),
    ],
)
def test_anything_else_gives_another_key(other: tuple[str, dict[str, str], object, str]) -> None:
    assert KEY.fullmatch(key(*other))
    assert key(*other) != key(*ONE)


@given(JSON, JSON)
def test_slices_share_a_key_only_where_they_are_the_same(a: object, b: object) -> None:
    assert (key("bundle", {}, a, "") == key("bundle", {}, b, "")) == (repr_of(a) == repr_of(b))


def repr_of(value: object) -> str:
    """An independent canonical form: repr tells 1, 1.0, True and -0.0 apart."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name!r}:{repr_of(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_of, value)) + "]"
    return repr(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": float("-inf")}]])
def test_no_key_for_what_is_not_finite(value: object) -> None:
    with pytest.raises(ValueError, match="not finite"):
        key("bundle", {}, value, "")


@pytest.mark.parametrize("value", [{1: "a"}, {"a": Path()}, [b""], {"a": {1, 2}}])
def test_no_key_for_what_json_would_change(value: object) -> None:
    with pytest.raises(TypeError, match="key"):
        key("bundle", {}, value, "")
    with pytest.raises(ValueError, match="kind"):
        key("../Bundle", {}, {}, "")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pack_a/{__init__, b}.py and pack_a/room -> ../room, as a checkout has; importing any of it is an error."""
    (tmp_path / "pack_a").mkdir()
    (tmp_path / "room").mkdir()
    for name in ("pack_a/__init__.py", "pack_a/b.py", "room/__init__.py", "room/c.py"):
        (tmp_path / name).write_text("raise AssertionError('imported')\n")
    (tmp_path / "pack_a" / "room").symlink_to("../room")
    (tmp_path / "room" / "loop").symlink_to("..")  # a link around itself must not hang
    (tmp_path / "pack_a" / "notes.txt").write_text("no code")
    monkeypatch.syspath_prepend(str(tmp_path))
    code_hash.__globals__["_one_code_hash"].cache_clear()
    return tmp_path


def fresh(*names: str) -> str:
    code_hash.__globals__["_one_code_hash"].cache_clear()  # the files change under one process here
    return code_hash(*names)


def test_code_is_hashed_without_importing_it_through_links(package: Path) -> None:
    before = fresh("pack_a"), fresh("pack_a.room"), fresh("pack_a.b")
    (package / "room" / "c.py").write_text("raise AssertionError('changed')\n")
    after = fresh("pack_a"), fresh("pack_a.room"), fresh("pack_a.b")
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, False, True]
    (package / "pack_a" / "notes.txt").write_text("still no code")
    assert fresh("pack_a") == after[0]
    (package / "room" / "c.py").rename(package / "room" / "d.py")
    assert fresh("pack_a.room") != after[1]
    assert not {"pack_a", "pack_a.room", "pack_a.b"} & set(sys.modules)


def test_a_link_and_a_folder_are_the_same_code(package: Path) -> None:
    (package / "room" / "loop").unlink()
    linked = fresh("pack_a", "pack_a.room")
    (package / "pack_a" / "room").unlink()
    (package / "room").rename(package / "pack_a" / "room")
    assert fresh("pack_a.room", "pack_a") == linked


def test_the_rooms_of_this_package_have_code() -> None:
    rooms = [code_hash(f"erq_export.{room}") for room in ("calibrate", "exporters", "validate")]
    assert len(set(rooms)) == 3
    for name in ("erq_export.nothing", "no_such_package.room"):
        with pytest.raises(ModuleNotFoundError):
            code_hash(name)
