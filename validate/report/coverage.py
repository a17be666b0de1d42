"""In which precision a model runs: bits designed, the container that carries them, and the kernel that multiplies, in tables."""

from collections import Counter
from collections.abc import Mapping

from erq_export.contract.parity import INTEGER_GEMMS, is_integer
from erq_export.contract.report import Layer, Report, TargetReport

from .tables import Table

NOT_READ = "not read"
INTEGER = INTEGER_GEMMS | {"int8"}  # ONNX Runtime's operators, and what a compiled plan says


def integer_layers(report: Report, target: TargetReport) -> int | None:
    """How many layers multiply integers there; None where nobody read what runs."""
    if not target.executed:
        return None
    return sum(target.executed.get(layer.path) in INTEGER for layer in report.layers)


def summed(report: Report) -> Table:
    """Layers and attentions of every target, counted by what was designed, what carries it and what runs."""
    head = ("target", "what", "designed", "container", "runs as", "in integers", "layers")
    body = []
    for name, target in report.targets.items():
        kinds = Counter((designed(layer), runs(target, layer.path)) for layer in report.layers)
        for (bits, kernel), n in kinds.items():
            body.append([name, "product", bits, target.container, kernel, _yes(kernel in INTEGER, kernel), str(n)])
        body += _attentions(name, target, report.quantization.options.get("attention_bits"))
    return head, body


def mean_weight_bits(report: Report) -> float | None:
    """Over all weights of quantized layers; None where nobody counted them."""
    if report.histograms is None:
        return None
    n = {path: layer.weights.n for path, layer in report.histograms.layers.items()}
    counted = [layer for layer in report.layers if n.get(layer.path)]
    whole = sum(n[layer.path] for layer in counted)
    return sum(layer.w_bits * n[layer.path] for layer in counted) / whole if whole else None


def designed(layer: Layer) -> str:
    """Weight and activation bits; 32 are an input that stays float."""
    return f"w{layer.w_bits}a{layer.a_bits}"


def runs(target: TargetReport, path: str) -> str:
    """What multiplies a layer there."""
    return target.executed.get(path, NOT_READ)


def _attentions(name: str, target: TargetReport, bits: object) -> list[list[str]]:
    if not target.claims.attention.get("int8"):
        return [
            [name, "attention", "not quantized", target.carrier, target.carrier, "no", str(n)]
            for n in target.claims.attention.values()
            if n
        ]
    kinds: Mapping[str, int] = Counter(target.attention.values()) or {NOT_READ: target.claims.attention["int8"]}
    return [
        [name, "attention", f"{bits} bits", target.container, kernel, _yes(_integer_attention(kernel), kernel), str(n)]
        for kernel, n in kinds.items()
    ]


def _integer_attention(kernel: str) -> bool:
    return kernel == "int8" or is_integer(kernel)


def _yes(is_so: bool, kernel: str) -> str:
    return "" if kernel == NOT_READ else "yes" if is_so else "no"
