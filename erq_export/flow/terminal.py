"""How a run looks on a terminal, and line by line where there is none."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from erq_export.contract.bench import Bench
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.report import Report
from erq_export.contract.side_by_side import SideBySide
from erq_export.validate.report import tables
from erq_export.validate.report.side_by_side import TITLE, side_by_side

LINE_EVERY_S = 10.0
LOG_WIDTH = 160


class Terminal:
    """Draws stages and progress: a bar on a terminal, a line now and then in a log."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = LOG_WIDTH
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = 0.0
        self._begun = "", 0, 0.0  # what, how much of it was done, and when, as it was heard of first

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if not self.console.is_terminal:
            self.console.print(f"{name} …")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        left = TimeRemainingColumn()
        with Progress(
            *columns, left, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as bar:
            self._bar, self._task = bar, bar.add_task(name, total=None)
            self._last = time.perf_counter()
            try:
                yield
            finally:
                self._bar = self._task = None

    def progress(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if what != self._begun[0] or done < self._begun[1]:
            self._begun = what, done, now
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what, completed=done, total=total)
        if not self.console.is_terminal and now - self._last > LINE_EVERY_S:
            self._last = now
            self.console.print(f"  {what} ({done} of {total}{self._left(done, total, now)})")

    def _left(self, done: int, total: int, now: float) -> str:
        """How long the rest takes, where each piece takes as long as those before it."""
        _, first, began = self._begun
        if done <= first:
            return ""
        seconds = (now - began) / (done - first) * (total - done)
        return f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"

    def note(self, text: str) -> None:
        self.console.print(text)

    def table(self, title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
        """A table of plain cells."""
        drawn = Table(title=title, title_justify="left")
        for column in head:
            drawn.add_column(column, no_wrap=True)
        for row in body:
            drawn.add_row(*(escape(cell) for cell in row))
        self.console.print(drawn)

    def show(self, report: Report, out: Path) -> None:
        """The end of a run: the verdict, the comparison, the price of choices, the other sentences, where everything lies."""
        for sentence in report.headline[:1]:
            self.console.print(sentence, markup=False, style="bold")
        if report.comparison and report.accuracy is not None:
            title = f"Top-1 on {report.accuracy.n_images} held-out images"
            self.table(title, *tables.comparison(report.comparison, report.accuracy))
        if report.price:
            self.table("From the published scheme to what is deployed", *tables.price(report.price))
        for sentence in report.headline[1:]:
            self.console.print(f"- {sentence}", markup=False)
        self.files(OutputFolder(out))
        if (page := out / "report.html").is_file():
            self.console.print(f"report to show around: {page}", markup=False)

    def bench(self, found: Bench) -> None:
        """A benchmark: its table, and what it means."""
        self.table(f"{found.model} {found.bits.brief} on {found.processor}", *tables.bench(found.lines))
        self.console.print(tables.BENCH_LEGEND)
        for sentence in (*found.notes, *(f"PROBLEM: {text}" for text in found.problems)):
            self.console.print(f"- {sentence}", markup=False)

    def side_by_side(self, found: SideBySide) -> None:
        """Runs, and what they do not have in common."""
        self.table(TITLE, *side_by_side(found))
        for sentence in found.differences:
            self.console.print(f"- {sentence}", markup=False)

    def files(self, out: OutputFolder) -> None:
        """Every file of a run with its size."""
        self.console.print("files:")
        for path in sorted(p for p in out.path.rglob("*") if p.is_file()):
            self.console.print(f"  {path}  {path.stat().st_size / 2**10:.0f} KiB", markup=False)
