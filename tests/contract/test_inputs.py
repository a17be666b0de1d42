"""Names can always be printed and written; what is no file is told apart from one before it is opened."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import LONGEST_SHOWN, encodable, regular_file, shown


@given(name=st.binary(max_size=40).map(os.fsdecode))
def test_any_file_name_can_be_written_and_printed(name: str) -> None:
    assert encodable(name).encode().decode() == encodable(name)
    assert shown(name).isprintable()
    if name.isascii():
        assert encodable(name) == name


@given(names=st.sets(st.binary(max_size=3).map(os.fsdecode).filter(lambda n: "\\" not in n)))
def test_different_names_stay_different(names: set[str]) -> None:
    assert len({encodable(n) for n in names}) == len(names)


def test_a_long_name_is_cut() -> None:
    assert len(shown("x" * 10**7)) == LONGEST_SHOWN + 1
    assert shown("x" * LONGEST_SHOWN) == "x" * LONGEST_SHOWN


def test_a_file_is_told_from_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "link"):
        found = regular_file(tmp_path / name, "list", fix="")
        assert (found.st_size, stat.S_ISREG(found.st_mode)) == (3, True)
    for path, says in ((tmp_path / "pipe", "a named pipe"), (tmp_path, "a folder"), (Path("/dev/null"), "a device")):
        with pytest.raises(DataError, match=f"cannot read the list .*: it is {says}") as caught:
            regular_file(path, "list", fix="do this")
        assert caught.value.fix == "do this"
