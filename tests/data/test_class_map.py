"""A class map is read as it was meant, or refused with the line."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import value_or_error

from erq_export.contract.errors import DataError
from erq_export.data.class_map import read_class_map


def written(folder: Path, content: str | bytes) -> Path:
    (folder / "map.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / "map.txt"


@pytest.mark.parametrize(
    "content",
    ["dog\ncat 7\nelk\n", "\ufeffdog\ncat 7\nelk", "dog\r\ncat\t7\r\n\r\nelk\r\n", "  dog \rcat   7\relk\r"],
    ids=["plain", "byte order mark", "Windows", "old Mac"],
)
def test_every_systems_lines_are_read(tmp_path: Path, content: str) -> None:
    assert read_class_map(written(tmp_path, content)) == {"dog": 0, "cat": 7, "elk": 2}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("dog ²", "line 1"),  # '²'.isdigit() is true, and int('²') raises
        ("dog ٣", "line 1"),  # int('٣') is 3
        ("dog 1\ncat ３", "line 2"),
        ("dog -1", "line 1"),
        ("dog +1", "line 1"),
        ("dog 1_0", "line 1"),
        ("dog 1e3", "line 1"),
        ("dog 12345678901234567890", "line 1"),
        ("dog " + "9" * 5000, "line 1"),
        ("dog\ncat\ndog 5", "line 3 names dog again"),
        ("dog\0cat", "NUL"),
        (b"\xff\xfed\0o\0g\0", "cannot read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "cannot read"),
        (b"x" * (2**24 + 1), "16777217 bytes"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_what_is_no_class_map_is_refused(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_class_map(written(tmp_path, content))
    assert len(str(caught.value)) < 1000


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "pipe", "a named pipe"), (tmp_path, "a folder"), (tmp_path / "x\0", "null")):
        with pytest.raises(DataError, match=says):
            read_class_map(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text("ab ²٣1-\t\r\n\0", max_size=40))
def test_any_text_is_read_or_refused(tmp_path: Path, content: str | bytes) -> None:
    outcome = value_or_error(lambda: read_class_map(written(tmp_path, content)))
    if not isinstance(outcome, DataError):
        assert all(name and 0 <= index < 10**9 for name, index in outcome.items())
