"""One picture of benchmarks/real.py: the tokens' error by bits, and the hidden state's error by depth."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from erq_export.flow.page import Row

TOKENS = {"held_out_cls_error": "CLS token", "held_out_patch_error": "patch tokens"}
ERROR = "relative squared error"


def draw(rows: Sequence[Row], path: Path) -> None:
    """PNG: above, error of the tokens by bits; below, one panel a precision with the error behind every block."""
    precisions, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("bits", "row"))
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    figure = Figure(figsize=(max(10, 3 * len(precisions)), 8), layout="constrained")
    grid = figure.add_gridspec(2, len(TOKENS) * len(precisions))
    for k, (key, title) in enumerate(TOKENS.items()):
        axes = figure.add_subplot(grid[0, k * len(precisions) : (k + 1) * len(precisions)])
        for name in names:
            own = [row for row in rows if row["row"] == name]
            figures = [row["figures"][key] for row in own]
            means = [figure["mean"] for figure in figures]
            reach = [[f["mean"] - f["min"] for f in figures], [f["max"] - f["mean"] for f in figures]]
            places = [precisions.index(row["bits"]) for row in own]
            axes.errorbar(places, means, reach, marker="o", capsize=3, color=colours[name], label=name)
        axes.set(title=title, yscale="log", xticks=range(len(precisions)), xticklabels=precisions)
    figure.axes[0].set_ylabel(ERROR)
    figure.axes[-1].legend()
    for k, bits in enumerate(precisions):
        axes = figure.add_subplot(grid[1, k * len(TOKENS) : (k + 1) * len(TOKENS)])
        for row in (row for row in rows if row["bits"] == bits):
            depth = [figure["mean"] for name, figure in row["figures"].items() if name.startswith("block_")]
            axes.plot(range(1, len(depth) + 1), depth, color=colours[row["row"]])
        axes.set(title=bits, yscale="log", xlabel="block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[len(TOKENS)].set_ylabel(f"hidden state, {ERROR}")
    figure.savefig(path, dpi=100, metadata={"Software": None})
