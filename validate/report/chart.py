"""One picture of a run: every layer's output error, with its inputs quantized, its weights then rounded, and as solved."""

from pathlib import Path

from erq_export.contract.report import Report

CURVES = {
    "error_nearest": "weights rounded to nearest",
    "error": "as solved",
    "error_inputs": "inputs quantized, weights not",
}
SMALLEST = 1e-12  # errors of 0 have no place on a logarithmic axis


def draw(report: Report, path: Path) -> bool:
    """Write the picture as SVG; False, and nothing written, where matplotlib (the extra `report`) is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return False
    layers = report.layers
    figure = Figure(figsize=(max(6.0, 0.16 * len(layers)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, says in CURVES.items():
        axes.plot([max(getattr(layer.statistics, name), SMALLEST) for layer in layers], marker=".", label=says)
    axes.set_yscale("log")
    axes.set_ylabel("output error / output energy")
    axes.set_xticks(range(len(layers)), [layer.path for layer in layers], rotation=90, fontsize=6)
    axes.set_title(f"{report.model.name} {report.quantization.bits.brief} {report.quantization.method}")
    axes.legend()
    with rc_context({"svg.hashsalt": path.name}):  # equal records give equal bytes
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True
