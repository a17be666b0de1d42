"""A page read back with the standard library: its tags, its text outside of pictures, its tables by section."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "wbr", "link", "br", "img", "input", "path", "use"}


@dataclass
class Table:
    """Cells as text."""

    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)  # the first is the head


class Page(HTMLParser):
    """tags: (name, attributes) in order;  text: what is outside of `svg`, `style` and `title`;  tables: by section's id."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.style = ""
        self.tables: dict[str, list[Table]] = {}
        self.pictures: dict[str, int] = {}
        self._open: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()
        assert self._open == [], self._open

    @property
    def first_line(self) -> str:
        """The first text of the body."""
        return next(text for text in self.text if text.strip()).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs).get("id") or ""
        elif tag == "table":
            self.tables.setdefault(self._section, []).append(Table())
        elif tag == "tr":
            self._table.rows.append([])
        elif tag in ("td", "th"):
            self._table.rows[-1].append("")
        elif tag == "svg":
            self.pictures[self._section] = self.pictures.get(self._section, 0) + 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.style += data
        if {"style", "svg", "title"} & set(self._open):
            return
        self.text.append(data)
        if {"td", "th"} & set(self._open):
            self._table.rows[-1][-1] += data
        elif "caption" in self._open:
            self._table.caption += data

    @property
    def _table(self) -> Table:
        return self.tables[self._section][-1]
