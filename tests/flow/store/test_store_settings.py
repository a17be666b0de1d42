"""The store is where the platform or the user says, and as large; what is no size is refused by name."""

import sys
from pathlib import Path

import pytest

from erq_export.contract.errors import ErqError, SpecError
from erq_export.flow.store.settings import default_limit, default_root, in_words, parse_size
from erq_export.flow.store.store import Store


def test_where_and_how_large_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ERQ_EXPORT_STORE", raising=False)
    monkeypatch.delenv("ERQ_EXPORT_STORE_LIMIT", raising=False)
    assert default_root().is_relative_to(tmp_path) or sys.platform != "linux"
    assert (default_root().parts[-2:], default_limit()) == (("erq-export", "store"), 20 << 30)
    monkeypatch.setenv("ERQ_EXPORT_STORE", str(tmp_path / "named"))
    monkeypatch.setenv("ERQ_EXPORT_STORE_LIMIT", "1.5GiB")
    with Store.at() as store:
        assert (store.root, store.limit_bytes) == (tmp_path / "named", 3 << 29)
        store.fetch("bundle", "a" * 64, lambda work: None, description="").close()
    assert (tmp_path / "named").exists()
    monkeypatch.setenv("ERQ_EXPORT_STORE", "~no-such-user/x")
    said: list[str] = []
    with Store.at(say=said.append) as store:
        assert store.fetch("bundle", "a" * 64, lambda work: None, description="").made_now
    assert (store.root, len(said)) == (None, 1)
    monkeypatch.setenv("ERQ_EXPORT_STORE_LIMIT", "much")
    with pytest.raises(SpecError, match="ERQ_EXPORT_STORE_LIMIT='much'"):
        Store.at()


@pytest.mark.parametrize(("text", "n_bytes"), [("20GiB", 20 << 30), ("1.5 TiB", 3 << 39), ("1B", 1), ("4096B", 4096)])
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes
    assert parse_size(in_words(n_bytes)) == n_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20",
        "20GB",
        "20gib",
        "-1GiB",
        "1e3GiB",
        "nanGiB",
        "infB",
        "0GiB",
        "0.1B",
        "٢GiB",
        "２GiB",
        "20GiB\n",
        "9" * 13 + "B",
    ],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ErqError, match="is no size") as caught:
        parse_size(text, what="LIMIT")
    assert "LIMIT=20GiB" in caught.value.fix
