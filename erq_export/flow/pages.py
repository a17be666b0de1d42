"""A run's pages, written from its records: report.md and report.html, and the pictures beside them."""

from collections.abc import Sequence
from pathlib import Path

from erq_export.contract.bench import BENCH, Bench
from erq_export.contract.files import write_text
from erq_export.contract.records import encode
from erq_export.contract.report import Report
from erq_export.validate.report import bench_chart, chart
from erq_export.validate.report.html import html
from erq_export.validate.report.markdown import markdown


def write_pages(folder: Path, report: Report, bench: Bench | None, command: Sequence[str]) -> None:
    """Both pages and the picture of the layers; with a benchmark of the same bundle, its record and picture too.

    command: the words that the run was started with, as its manifest has them.
    """
    drawn = bench is not None and write_bench(folder, bench)
    chart.draw(report, folder / "report.svg")
    write_text(folder / "report.md", markdown(report, bench, picture=drawn, command=command))
    write_text(folder / "report.html", html(report, bench, command=command))


def write_bench(folder: Path, bench: Bench) -> bool:
    """bench.json and, where it can be drawn, bench.svg: was it?"""
    (folder / BENCH).write_bytes(encode(bench))
    return bench_chart.draw(bench, folder / "bench.svg")
