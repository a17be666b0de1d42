"""The picture of a benchmark: times as fast as the twin, with its interval, of every line."""

from pathlib import Path

from erq_export.contract.bench import Bench


def draw(bench: Bench, path: Path) -> bool:
    """Write the picture as SVG; False, and nothing written, where matplotlib (the extra `report`) is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = [line for line in bench.lines if line.speedup is not None and line.inputs == "resident"]
    figure = Figure(figsize=(8.0, max(2.0, 0.3 * len(lines) + 1.2)), layout="constrained")
    axes = figure.add_subplot()
    for place, line in enumerate(lines):
        if (found := line.speedup) is not None:
            spread = [[found.ratio - found.low], [found.high - found.ratio]]
            axes.errorbar(
                [found.ratio], [place], xerr=spread, fmt="o", capsize=3, color="C0" if found.low > 1 else "C3"
            )
    axes.axvline(1.0, color="grey", linewidth=0.8)
    names = [f"{line.name}, batch {line.batch}" + f", {line.threads} threads" * (line.threads > 0) for line in lines]
    axes.set_yticks(range(len(lines)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the float twin; 95 % interval")
    axes.set_title(f"{bench.model} {bench.bits.brief}")
    with rc_context({"svg.hashsalt": path.name}):  # equal records give equal bytes
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True
