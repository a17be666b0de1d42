"""A detector in the report: sentences, tiles, tables and pictures of what it finds."""

from collections.abc import Iterator, Mapping
from html import escape

from erq_export.contract.detection import Averages, Detection, Judged, PartParity
from erq_export.contract.manifest import told
from erq_export.contract.parity import in_words
from erq_export.contract.report import PartReport, Report, TargetReport

from . import whole
from .section import Section
from .tables import Table

FAMILY = "detector"
Tile = tuple[str, str, str]


def is_detector(report: Report) -> bool:
    """Is the report of a detector?"""
    return report.model.family == FAMILY


def part_parities(report: Report) -> dict[str, PartParity]:
    """By "TARGET PART"."""
    return {name: one.parity for name, one in report.parts.items() if one.parity is not None}


def deployed(found: Detection) -> Judged:
    """What runs outside PyTorch, where something does."""
    return next(iter(found.graphs.values()), found.reference)


def detected(found: Detection) -> str:
    """A clause of the verdict."""
    judged = deployed(found)
    return (
        f"box AP {judged.box.ap:.2f} and mask AP {judged.mask.ap:.2f} against {found.exact.box.ap:.2f} and "
        f"{found.exact.mask.ap:.2f} in float32 on {found.n_images} pictures"
    )


def parts_exact(parts: Mapping[str, PartParity]) -> str:
    """A clause of the verdict: are integers equal?"""
    wrong = sum(p.codes.mismatches + p.sums.mismatches + sum(p.weights.different.values()) for p in parts.values())
    if wrong:
        return f"{wrong} weights, codes and integer sums are not those of PyTorch"
    codes, sums = (sum(getattr(p, what).n for p in parts.values()) for what in ("codes", "sums"))
    return f"all {codes} codes and {sums} integer sums compared, of {len(parts)} graphs, are PyTorch's"


def sentences(report: Report) -> Iterator[str]:
    """What is found, how exact each target is, what was compiled."""
    found = report.detection
    if found is None:
        yield "Average precision was not measured: no annotated pictures (--coco DIR)."
    else:
        canvases = " or ".join(f"{height} × {width}" for height, width in found.canvases)
        passed = found.n_given - found.n_images
        yield (
            f"Average precision on {found.n_images} pictures on a canvas of {canvases}"
            + (f" ({passed} others do not fit on it)" if passed else "")
            + f": box {found.exact.box.ap:.2f}, mask {found.exact.mask.ap:.2f} in float32."
        )
        for name, judged in _quantized(found):
            yield (
                f"{name}: box {judged.box.ap:.2f}, {_told(judged, 'box')}, mask {judged.mask.ap:.2f}, {_told(judged, 'mask')} "
                "(points beside float32, 95 % paired bootstrap in brackets)."
            )
        yield from _alike(found)
    yield from whole.sentences(whole.wholes(report))
    for name, target in report.targets.items():
        yield from _target(name, target)


def _quantized(found: Detection) -> list[tuple[str, Judged]]:
    return [("The fake-quant reference", found.reference), *found.graphs.items()]


def _told(judged: Judged, kind: str) -> str:
    change = judged.box_change if kind == "box" else judged.mask_change
    return "" if change is None else change.told


def _alike(found: Detection) -> Iterator[str]:
    """How alike detections are, one by one, beside what the reference's own trembling leaves of them."""
    for name, like in found.as_reference.items():
        own, beside = found.trembling.get(name), ""
        if own is not None:
            beside = f"; of its own, when its layers' inputs tremble by a rounding, {own.found} of {own.n}, {own.alike} alike"
        yield f"{name}: {like.told}{beside}."


def _target(name: str, target: TargetReport) -> Iterator[str]:
    yield (
        f"{name}: {len(target.parts)} graphs, {told(target.claims.gemm, 'products')} claimed in {target.container} containers, "
        f"{target.bytes / 2**20:.1f} MiB without the whole detector's."
    )
    for part, one in target.parts.items():
        if (parity := one.parity) is not None:
            worst = max(parity.outputs.values(), default=0.0)
            yield (
                f"{name} {part}: {len(parity.layers)} layers on their own inputs, {parity.codes.mismatches} of "
                f"{parity.codes.n} codes and {parity.sums.mismatches} of {parity.sums.n} sums differ, float operators between "
                f"them {in_words(parity.between.worst, 0, before='by at most ')}; the whole part's outputs are at most "
                f"{in_words(worst)} from PyTorch's, with all codes that round the other way."
            )
        if one.engine is not None:
            plan = one.engine.plan
            integer = sum(precision == "int8" for precision in one.engine.precision.values())
            yield (
                f"{name} {part}: {one.engine.package} {one.engine.version} compiled {integer} of "
                f"{len(one.engine.precision)} claimed layers to INT8, {told(plan.attention, 'fused attentions')}; engine "
                f"{one.engine.bytes / 2**20:.1f} MiB."
            )


def tiles(found: Detection) -> Iterator[Tile]:
    """Both average precisions."""
    judged = deployed(found)
    yield "box AP", f"{judged.box.ap:.2f}", f"{found.exact.box.ap:.2f} in float32"
    yield "mask AP", f"{judged.mask.ap:.2f}", f"{found.exact.mask.ap:.2f} in float32"


def sections(report: Report) -> Iterator[Section]:
    """What is found, and every part."""
    found = report.detection
    if found is None:
        says = ("Average precision was not measured: no annotated pictures (--coco DIR).",)
        yield Section(anchor="detection", title="Average precision", says=says)
    else:
        title = f"Average precision on {found.n_images} pictures"
        says = (
            "In brackets 95 % intervals of points beside float32, of a bootstrap over pictures that both draw alike.",
        )
        table, notes = ("", average_precision(found)), tuple(_alike(found))
        yield Section(anchor="detection", title=title, says=says, tables=(table,), notes=notes)
    if report.targets:
        yield Section(
            anchor="parts",
            title="Parts",
            says=(
                "Each part is a graph and, for TensorRT, an engine; which boxes go from one to the next is computed in floating "
                "point. Codes and sums are compared layer by layer, each on the input that it gets in PyTorch.",
            ),
            tables=(("", parts(report)),),
        )
    if graphs := whole.wholes(report):
        yield Section(
            anchor="whole",
            title="The whole in one graph",
            says=(
                "Where a number lies halfway between two codes, or two boxes have equal scores, float32's last digits decide, "
                "and all that follows is another computation. So the reference looks how far each choice of the graph is from a "
                "tie, by its own numbers, goes on with that choice, and must find what the graph finds.",
            ),
            tables=(("", whole.ties(graphs)),),
            notes=tuple(whole.sentences(graphs)),
        )


def average_precision(found: Detection) -> Table:
    """One line a way to run it and a kind."""
    head = ("runner", "of", "AP", "beside float32", "AP₅₀", "AP₇₅", "small", "medium", "large")
    body = []
    for name, judged in (("float32", found.exact), ("reference", found.reference), *found.graphs.items()):
        for kind, averages in (("boxes", judged.box), ("masks", judged.mask)):
            change = judged.box_change if kind == "boxes" else judged.mask_change
            body.append([name, kind, f"{averages.ap:.2f}", "" if change is None else change.told, *_rest(averages)])
    return head, body


def _rest(averages: Averages) -> list[str]:
    sizes = (averages.small, averages.medium, averages.large)
    return [f"{averages.ap50:.2f}", f"{averages.ap75:.2f}", *("" if v is None else f"{v:.2f}" for v in sizes)]


def parts(report: Report) -> Table:
    """One line a target and part."""
    head = ("target", "part", "products", "codes differ", "sums differ", "in INT8", "graph MiB", "engine MiB")
    return head, [
        [name, part, told(one.claims.gemm, "").strip(), *_equal(one), *_compiled(one)]
        for name, target in report.targets.items()
        for part, one in target.parts.items()
    ]


def _equal(one: PartReport) -> list[str]:
    if one.parity is None:
        return ["", ""]
    codes, sums = one.parity.codes, one.parity.sums
    return [f"{codes.mismatches} of {codes.n}", f"{sums.mismatches} of {sums.n}"]


def _compiled(one: PartReport) -> list[str]:
    graph = f"{one.bytes / 2**20:.2f}"
    if one.engine is None:
        return ["", graph, ""]
    integer = sum(precision == "int8" for precision in one.engine.precision.values())
    return [f"{integer} of {len(one.engine.precision)}", graph, f"{one.engine.bytes / 2**20:.2f}"]


def pictures(found: Detection) -> str | None:
    """Rows of float beside quantized, as HTML; None where nothing was drawn."""
    if not found.examples:
        return None
    rows = "".join(
        f'<p>{escape(one.name)}: float32, then quantized</p><img alt="found in float32" src="data:image/jpeg;base64,'
        f'{one.exact}"> <img alt="found by the quantized detector" src="data:image/jpeg;base64,{one.reference}">'
        for one in found.examples
    )
    return f'<div class="found">{rows}</div>'
