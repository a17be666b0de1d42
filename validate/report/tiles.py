"""The handful of figures that one reads first."""

from collections.abc import Iterator

from erq_export.contract.accuracy import Accuracy
from erq_export.contract.bench import Bench
from erq_export.contract.parity import in_words
from erq_export.contract.report import Report

from . import detection
from .coverage import integer_layers
from .facts import MIB
from .verdict import fastest

Tile = tuple[str, str, str]  # label, figure, what it stands beside


def tiles(report: Report, bench: Bench | None = None) -> tuple[Tile, ...]:
    """At most five."""
    accuracy = _accuracy(report.accuracy) if report.detection is None else detection.tiles(report.detection)
    return (*accuracy, *_parity(report), *_targets(report), *_speed(report, bench))


def _accuracy(accuracy: Accuracy | None) -> Iterator[Tile]:
    if accuracy is None:
        return
    judged = next(iter(accuracy.graphs.values()), accuracy.reference)
    if judged.top1 is not None and accuracy.float_top1 is not None:
        yield "top-1", f"{judged.top1.value:.2f} %", f"{accuracy.float_top1.value:.2f} % in float32"
    elif judged.agreement is not None:
        yield "the float model's class", f"{judged.agreement.value:.2f} %", f"of {accuracy.n_images} images"
    else:
        yield f"{accuracy.outputs}' error", in_words(judged.error), "beside the float model's"


def _parity(report: Report) -> Iterator[Tile]:
    for target in report.targets.values():
        if target.parity is not None:
            model = target.parity.model
            yield (
                "apart from PyTorch",
                in_words(model.relative_l2),
                f"PyTorch's own noise {in_words(model.floor.relative_l2)}",
            )
            return


def _targets(report: Report) -> Iterator[Tile]:
    for name, target in report.targets.items():
        n = integer_layers(report, target)
        if n is not None:
            yield "layers in integers", f"{n} of {len(report.layers)}", name
        yield "graph", f"{target.bytes / MIB:.2f} MiB", f"{target.sizes.float32 / MIB:.2f} MiB of tensors in float32"
        return


def _speed(report: Report, bench: Bench | None) -> Iterator[Tile]:
    if bench is not None and (best := fastest(bench)) is not None and best.speedup is not None:
        threads = f", {best.threads} threads" if best.threads else ""
        what = "a part's times as fast, at best" if bench.parts else "times as fast, at best"
        yield what, f"{best.speedup.ratio:.2f} ×", f"{best.name}, batch {best.batch}{threads}"
    elif report.latency is not None and report.latency.ratios:
        ratio = list(report.latency.ratios.values())[-1]
        yield "times as fast", f"{ratio.median:.2f} ×", "as float32 in ONNX Runtime on this CPU"
