"""The report's sections in their order: title, sentences and tables of each, the same on every page."""

from collections.abc import Iterator, Sequence

from erq_export.contract.bench import Bench
from erq_export.contract.histograms import Histograms
from erq_export.contract.report import Report
from erq_export.contract.story import Story

from . import coverage, detection, facts, parity_tables, ranges, story_tables, tables
from .section import Section


def sections(report: Report, bench: Bench | None = None, command: Sequence[str] = ()) -> Iterator[Section]:
    """Those that there is something to say in. command: the words that the run was started with."""
    yield from detection.sections(report) if detection.is_detector(report) else (_accuracy(report),)
    if report.comparison:
        yield Section(anchor="comparison", title="Comparison", tables=(("", tables.comparison(report.comparison)),))
    if report.price:
        title = "From the published scheme to what is deployed"
        yield Section(anchor="price", title=title, tables=(("", tables.price(report.price)),))
    yield from _parity(report)
    if report.targets:
        yield _precision(report)
    if bench is not None:
        yield _speed(bench)
    if report.latency is not None:
        yield _latency(report)
    if report.story is not None:
        yield from _story(report.story)
    yield _layers(report)
    if report.histograms is not None:
        yield _histograms(report.histograms)
    if report.targets:
        yield Section(anchor="sizes", title="Sizes", tables=(("", facts.sizes(report)),))
    yield Section(anchor="stages", title="Cost of each stage", tables=(("", tables.stages(report.stages)),))
    made, where = ("What it was made of", facts.made_of(report)), ("Machine and versions", facts.where(report))
    yield Section(anchor="environment", title="Environment", tables=(made, where))
    says = ("In the folder that this report lies in, wherever that is by now:",)
    yield Section(
        anchor="again",
        title="Run it again",
        says=says,
        commands=facts.again(command),
    )


def _accuracy(report: Report) -> Section:
    found = report.accuracy
    if found is None:
        says = ("Accuracy was not measured: no held-out images (--val DIR).",)
        return Section(anchor="accuracy", title="Accuracy", says=says)
    worst = (("Classes that lose most:", tables.worst_classes(found)),) if found.worst else ()
    return Section(
        anchor="accuracy",
        title=f"{found.n_images} held-out images",
        says=("In brackets 95 % intervals; error and cosine are those of the outputs beside the float model's.",),
        tables=(("", tables.held_out(found)), *worst),
    )


def _parity(report: Report) -> Iterator[Section]:
    found = {name: target.parity for name, target in report.targets.items() if target.parity is not None}
    if not found:
        return
    shown, folded = [], []
    for name, parity in found.items():
        shown.append((f"{name}, on {parity.n_images} images:", parity_tables.levels(parity)))
        shown += [(f"{name}, {field}:", table) for field, table in parity_tables.others(parity).items()]
        if parity.blocks:
            folded.append((f"{name}, block by block", parity_tables.blocks(parity)))
        folded.append((f"{name}, layer by layer", parity_tables.layers(parity)))
    yield Section(
        anchor="parity",
        title="Parity",
        says=(
            "The graph in ONNX Runtime beside the PyTorch model that was calibrated, from single integers to the whole.",
        ),
        tables=tuple(shown),
        folded=tuple(folded),
    )


def _precision(report: Report) -> Section:
    return Section(
        anchor="precision",
        title="Precision",
        says=(
            "What was designed, what carries it, and what multiplies it: low bits live in 8-bit containers. Every layer's own "
            "is in the table of layers.",
        ),
        tables=(("", coverage.summed(report)),),
        notes=tuple(f"Not verified here: {text}" for text in report.not_verified),
    )


def _speed(bench: Bench) -> Section:
    return Section(
        anchor="speed",
        title="Speed",
        says=(f"{bench.processor}; cores {', '.join(map(str, bench.cores))}. " + tables.BENCH_LEGEND,),
        tables=(("", tables.bench(bench.lines)),),
        notes=(*bench.notes, *(f"PROBLEM: {problem}" for problem in bench.problems)),
    )


def _latency(report: Report) -> Section:
    found = report.latency
    if found is None:
        raise ValueError("the report has no latency")
    says = (
        f"ONNX Runtime on {found.processor}, batch {found.batch}, {found.threads} threads, {found.rounds} rounds in turns "
        f"behind {found.warm_up} of warm-up.",
    )
    return Section(anchor="latency", title="Latency", says=says, tables=(("", facts.latency(found)),))


def _story(story: Story) -> Iterator[Section]:
    on = (
        f"Measured in PyTorch on {story.n_images} images ({story.seen_on}) beside the float model, relative squared errors of "
        f"the {story.outputs}"
    )
    yield Section(
        anchor="depth",
        title="Error by depth",
        says=(f"{on}: {story.error:.2e} in the end. Every layer up to the block is quantized.",),
        tables=(("", story_tables.depth(story)),),
    )
    if story.sensitivity:
        yield Section(
            anchor="sensitivity",
            title="What each layer costs",
            says=(f"{on}, most costly layer first. What a layer gives back is a share of the whole error.",),
            tables=(("", story_tables.sensitivity(story)),),
        )


def _layers(report: Report) -> Section:
    says = (
        "Bits designed, then container and kernel of every target, then the error of the layer's output on the calibration rows, "
        "relative to the output's energy."
    )
    return Section(anchor="layers", title="Layers", says=(says,), folded=(("Every layer", tables.layers(report)),))


def _histograms(found: Histograms) -> Section:
    says = (
        f"Weights are the bundle's integers; inputs are what {found.n_images} of the calibration images give the quantized "
        "model in PyTorch, before they are rounded to the grid and clipped to its ends."
    )
    return Section(
        anchor="histograms", title="Ranges and histograms", says=(says,), folded=(("Ranges", ranges.ranges(found)),)
    )
