"""Runs side by side as a table, and as pages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from markupsafe import Markup

from erq_export.contract.accuracy import Judged, Share
from erq_export.contract.parity import in_words
from erq_export.contract.side_by_side import RunFigures, SideBySide

from .facts import MIB
from .html import page
from .markdown import table
from .pictures import intervals
from .tables import Table

TITLE = "Runs side by side"
MOST_COLUMNS = 4  # more runs stand below each other
Row = tuple[str, list[str]]


def side_by_side(found: SideBySide) -> Table:
    """A column a run, or a row where they are many; what none of them has is left out."""
    rows = [(what, cells) for what, cells in _rows(found.runs) if any(cells)]
    names = [run.folder for run in found.runs]
    if len(names) <= MOST_COLUMNS:
        return ("", *names), [[what, *cells] for what, cells in rows]
    heads = ("", *(what for what, _ in rows))
    return heads, [[name, *(cells[i] for _, cells in rows)] for i, name in enumerate(names)]


def markdown(found: SideBySide) -> str:
    """A Markdown page."""
    verdicts = [f"- {run.folder}: {run.verdict}" for run in found.runs]
    parts = ["\n".join(f"- {text}" for text in found.differences), table(*side_by_side(found)), "\n".join(verdicts)]
    return "\n\n".join([f"# {TITLE}", *(part for part in parts if part)]) + "\n"


def html(found: SideBySide) -> str:
    """An HTML page that needs nothing else."""
    shares = [(run.folder, s.value, s.low, s.high) for run in found.runs if (s := _top1(run)) is not None]
    label = "top-1 in per cent, 95 % interval"
    drawn = intervals("accuracy", shares, label) if len(shares) > 1 else None
    return page(
        "compare.html.j2",
        title=TITLE,
        found=found,
        table=side_by_side(found),
        picture=None if drawn is None else Markup(drawn),
    )


def _rows(runs: Sequence[RunFigures]) -> Iterator[Row]:
    def row(what: str, of: Callable[[RunFigures], str | None]) -> Row:
        return what, [of(run) or "" for run in runs]

    yield row("verdict", lambda run: "FAILED" if run.problems else run.verdict.partition(":")[0])
    yield row("problems", lambda run: str(len(run.problems)) if run.problems else None)
    yield row("model", lambda run: run.model)
    yield row("weights", lambda run: run.weights)
    yield row("bits", lambda run: run.bits)
    yield row("mean weight bits", lambda run: None if run.mean_weight_bits is None else f"{run.mean_weight_bits:.2f}")
    yield row("method", lambda run: run.method)
    yield row("attention", lambda run: run.attention)
    yield row("targets", lambda run: ", ".join(run.targets))
    yield row("calibration images", lambda run: str(run.n_calibrated))
    yield row("calibration s", lambda run: None if run.calibration is None else f"{run.calibration.wall_s:.1f}")
    yield row(
        "calibration peak MiB", lambda run: None if run.calibration is None else f"{run.calibration.peak_mib:.0f}"
    )
    yield row("layer error", lambda run: None if run.layer_error is None else f"{run.layer_error:.5f}")
    yield row("held-out images", lambda run: None if run.held_out is None else str(run.held_out.n_images))
    yield row("top-1 % float32", lambda run: None if run.held_out is None else _told(run.held_out.float_top1))
    for name in _names([_judged(run) for run in runs]):
        of = partial(_of_runner, name)
        yield row(f"top-1 % {name}", partial(of, lambda judged: _told(judged.top1)))
        yield row(f"float model's class % {name}", partial(of, lambda judged: _told(judged.agreement)))
        yield row(f"error {name}", partial(of, lambda judged: in_words(judged.error)))
        yield row(f"cosine {name}", partial(of, lambda judged: f"{judged.cosine:.4f}"))
    for name in _names([run.parity for run in runs]):
        yield row(f"apart from PyTorch {name}", partial(_apart, name))
    for what, sizes in (("graph", [run.graph_bytes for run in runs]), ("engine", [run.engine_bytes for run in runs])):
        for name in _names(sizes):
            yield f"{what} MiB {name}", [f"{of[name] / MIB:.2f}" if name in of else "" for of in sizes]
    for name in _names([run.speed for run in runs]):
        yield f"times as fast, {name}", [run.speed[name].told if name in run.speed else "" for run in runs]


def _names(of: Sequence[Mapping[str, object]]) -> list[str]:
    """Every name that some run has, in order of appearance."""
    return list(dict.fromkeys(name for names in of for name in names))


def _judged(run: RunFigures) -> dict[str, Judged]:
    return {} if run.held_out is None else {"reference": run.held_out.reference} | run.held_out.graphs


def _of_runner(name: str, of: Callable[[Judged], str | None], run: RunFigures) -> str | None:
    judged = _judged(run).get(name)
    return None if judged is None else of(judged)


def _apart(name: str, run: RunFigures) -> str | None:
    found = run.parity.get(name)
    return None if found is None else f"{in_words(found.relative_l2)} (noise {in_words(found.floor)})"


def _told(share: Share | None) -> str | None:
    return None if share is None else share.told


def _top1(run: RunFigures) -> Share | None:
    """Of the first graph, else of the reference."""
    if run.held_out is None:
        return None
    return next(iter(run.held_out.graphs.values()), run.held_out.reference).top1
