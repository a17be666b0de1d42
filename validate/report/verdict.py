"""The verdict on a run in one sentence: passed or failed and why, what was computed, in which precision, how exact, how fast."""

from collections.abc import Iterator

from erq_export.contract.accuracy import Accuracy
from erq_export.contract.bench import Bench, Line
from erq_export.contract.parity import ParityReport, in_words
from erq_export.contract.report import Report

from ..sanity import doubt
from .coverage import integer_layers
from .detection import detected, part_parities, parts_exact
from .whole import finds_the_same, wholes

FAILED, PASSED, SIMULATED = "FAILED", "Passed", "Simulated"
LONGEST = 300  # characters of the problem that is quoted


def verdict(report: Report, bench: Bench | None = None) -> str:
    """One sentence; how fast comes last, behind its last semicolon."""
    accurate = _accurate(report.accuracy) if report.detection is None else detected(report.detection)
    parts = (_computed(report), accurate, _exact(report), _fast(report, bench))
    return f"{_outcome(report, bench)}: {'; '.join(parts)}."


def outcome(report: Report, bench: Bench | None = None) -> str:
    """In one word. A run without a graph has nothing that could pass: its scheme is simulated."""
    if problems(report, bench):
        return FAILED
    return PASSED if report.targets else SIMULATED


def problems(report: Report, bench: Bench | None = None) -> tuple[str, ...]:
    """What failed, of the run and of its benchmark."""
    return (*report.problems, *(() if bench is None else bench.problems))


def _outcome(report: Report, bench: Bench | None) -> str:
    word, found = outcome(report, bench), problems(report, bench)
    if found:
        first = found[0].rstrip(".")
        first = first if len(first) <= LONGEST else f"{first[:LONGEST]}…"
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        word = f"{word} ({first}{more})"
    if report.model.weights == "random":
        word = word if found else word.lower()
        return f"Random weights, so every accuracy figure means nothing; apart from that {word}"
    return word


def _computed(report: Report) -> str:
    n = len(report.layers)
    what = f"{report.model.name} in {report.quantization.bits.brief} by {report.quantization.method}, {n} layer{'s' * (n != 1)}"
    return ", ".join((what, *_precision(report))) if report.targets else f"{what}, in PyTorch alone"


def _precision(report: Report) -> Iterator[str]:
    """One clause for the targets that run, or were compiled to run, the same number of layers in integers."""
    alike: dict[tuple[int | None, bool], list[str]] = {}
    for name, target in report.targets.items():
        alike.setdefault((integer_layers(report, target), target.compiled), []).append(name)
    for (n, compiled), names in alike.items():
        where = " and ".join(names)
        if n is None:
            yield f"for {where} nobody read what multiplies"
        else:
            how = "compiled to multiply 8-bit integers" if compiled else "multiplying 8-bit integers"
            yield f"{'all' if n == len(report.layers) else f'{n} of them'} {how} for {where}"


def _accurate(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "accuracy not measured"
    n = accuracy.n_images
    judged = next(iter(accuracy.graphs.values()), accuracy.reference)
    if judged.top1 is not None and accuracy.float_top1 is not None:
        told = f"top-1 {judged.top1.value:.2f} % against {accuracy.float_top1.value:.2f} % in float32 on {n} images"
        return (
            told
            if doubt(accuracy) is None
            else f"{told}, {accuracy.published_top1:.2f} % being known of it: doubt the data"
        )
    if judged.agreement is not None:
        return f"the float model's class on {judged.agreement.value:.2f} % of {n} images without labels"
    return f"{accuracy.outputs} {in_words(judged.error)} from the float model's on {n} images"


def _exact(report: Report) -> str:
    found = {name: target.parity for name, target in report.targets.items() if target.parity is not None}
    if parts := part_parities(report):
        return "; ".join((parts_exact(parts), *([finds_the_same(whole)] if (whole := wholes(report)) else [])))
    if not found:
        return "no graph to hold against PyTorch"
    wrong = {name: _differ(parity) for name, parity in found.items()}
    if n := sum(wrong.values()):
        return f"{n} weights, codes and integer sums are not those of PyTorch"
    (name, parity), *_ = found.items()
    model = parity.model
    said = "all codes and integer sums compared are PyTorch's"
    apart, noise = in_words(model.relative_l2), f"{in_words(model.floor.relative_l2)} of PyTorch's own noise"
    if parity.followed is None or parity.followed.problems():
        return f"{said}, outputs for {name} {apart} apart beside {noise}"
    return (
        f"{said}, once PyTorch breaks its ties as {name} does {parity.followed.near} apart, else {apart} beside {noise}"
    )


def _differ(parity: ParityReport) -> int:
    """Weights, activation codes and integer sums that are others than they should be."""
    found = sum(parity.weights.different.values()) + sum(product.sums.mismatches for product in parity.products)
    found += sum(layer.codes.mismatches + layer.accumulators.mismatches for layer in parity.layers)
    return found + sum(operand.codes.mismatches for operand in parity.operands)


def fastest(bench: Bench) -> Line | None:
    """What is ours and fastest beside its twin; None where nothing of ours was timed."""
    return max(_timed(bench), key=_median, default=None)


def _fast(report: Report, bench: Bench | None) -> str:
    if bench is not None and (lines := _timed(bench)):
        slow, fast = (f"{_median(choose(lines, key=_median)):.2f}" for choose in (min, max))
        times = f"{slow} to {fast} ×" if len(lines) > 1 else f"{fast} ×"
        return f"parts {times} as fast as their float twins" if bench.parts else f"{times} as fast as its float twin"
    if report.latency is not None and report.latency.ratios:
        ratio = list(report.latency.ratios.values())[-1]
        return f"{ratio.median:.2f} × as fast as float32 in ONNX Runtime on this CPU"
    return "speed not measured"


def _timed(bench: Bench) -> list[Line]:
    return [line for line in bench.lines if line.role == "ours" and line.inputs == "resident" and line.speedup]


def _median(line: Line) -> float:
    return 0.0 if line.speedup is None else line.speedup.ratio
