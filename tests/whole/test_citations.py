"""What code and docs cite of the docs exists: the page, and the heading on it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = re.compile(r"\bdocs/([\w-]+\.md)\b")
HEADING = r'"([^"\n]+)"'
CITATION = re.compile(rf"\bdocs/([\w-]+\.md)`?, ((?:{HEADING}(?:, | and )?)+)")
ELSEWHERE = re.compile(r"\b(?:erq|qdq)\.md\b")  # notes that the repository does not hold


def unwrapped(text: str) -> str:
    """The text with its paragraphs' lines, comments' too, joined by one space."""
    return re.sub(r"[ \t]*\n[ \t]*(?:#[ \t]+)?(?=\S)", " ", text)


def cited(text: str) -> list[tuple[str, str]]:
    """(page, heading) of every citation of the form docs/PAGE.md, "Heading" and "Another"."""
    return [(m[1], heading) for m in CITATION.finditer(unwrapped(text)) for heading in re.findall(HEADING, m[2])]


def headings(page: Path) -> set[str]:
    """Those of a page, code blocks apart."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE))


def tracked() -> Iterator[tuple[str, str]]:
    """(name, text) of every file of code or prose that git tracks, this one apart: its examples cite nothing."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", "") and path.is_file() and path != Path(__file__).resolve():
            yield name, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return dict(tracked())


def test_every_cited_page_exists(files: dict[str, str]) -> None:
    absent = {(name, page) for name, text in files.items() for page in PAGE.findall(text)}
    assert {(name, page) for name, page in absent if not (ROOT / "docs" / page).is_file()} == set()


def test_every_cited_heading_is_on_its_page(files: dict[str, str]) -> None:
    known = {page.name: headings(page) for page in (ROOT / "docs").glob("*.md")}
    found = {(name, page, heading) for name, text in files.items() for page, heading in cited(text)}
    assert {(name, page, heading) for name, page, heading in found if heading not in known.get(page, ())} == set()
    assert {page for _, page, _ in found} >= {"method.md", "backends.md"}


@pytest.mark.parametrize("page", ["method.md", "backends.md"])
def test_every_heading_that_a_page_points_to_on_itself_exists(page: str) -> None:
    """In parentheses, as in: the ridge ("Ridge")."""
    path = ROOT / "docs" / page
    text = unwrapped(path.read_text(encoding="utf-8"))
    pointed = {h for group in re.findall(rf"\(((?:{HEADING}(?:, )?)+)\)", text) for h in re.findall(HEADING, group[0])}
    assert pointed
    assert pointed - headings(path) == set()


@pytest.mark.parametrize("page", ["method.md", "backends.md"])
def test_every_file_that_a_page_names_without_its_folder_exists(page: str, files: dict[str, str]) -> None:
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "docs" / page).read_text(encoding="utf-8")))
    assert named
    assert named - {Path(name).name for name in files} == set()


def test_nothing_cites_notes_that_the_repository_does_not_hold(files: dict[str, str]) -> None:
    assert {name: found for name, text in files.items() if (found := ELSEWHERE.findall(text))} == {}


def test_a_citation_is_found_across_lines_and_in_comments() -> None:
    assert cited('see docs/method.md,\n    # "Aqer" and "Wqer").') == [("method.md", "Aqer"), ("method.md", "Wqer")]
    assert cited('(`docs/backends.md`, "Weight forms")') == [("backends.md", "Weight forms")]
    assert cited("docs/method.md alone names no heading") == []
