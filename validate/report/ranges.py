"""Where a layer's numbers lie: codes of its weights, and its input's range beside its grid, in a table."""

from collections.abc import Iterator

from erq_export.contract.histograms import Histograms, InputHistogram, LayerHistograms

from .tables import Table


def ranges(found: Histograms) -> Table:
    """One line a layer."""
    head = ("layer", "weights", "their codes", "input values", "step", "from … to", "grid from … to", "beyond the grid")
    return head, [[path, *_weights(layer), *_inputs(layer.inputs)] for path, layer in found.layers.items()]


def captions(layer: LayerHistograms) -> tuple[str, str]:
    """Below the two pictures of a layer."""
    n, codes = _weights(layer)
    if layer.inputs is None:
        return f"{n} weights, codes {codes}", "the input stays float"
    size, step, values, grid, beyond = _inputs(layer.inputs)
    return (
        f"{n} weights, codes {codes}",
        f"{size} input values from {values}; grid {grid} in steps of {step}; {beyond} beyond it",
    )


def _weights(layer: LayerHistograms) -> Iterator[str]:
    yield f"{layer.weights.n:,}"
    yield f"{layer.weights.first} … {layer.weights.last}"


def _inputs(inputs: InputHistogram | None) -> list[str]:
    if inputs is None:
        return ["", "", "", "stays float", ""]
    codes, step = inputs.codes, inputs.scale
    return [
        f"{codes.n:,}",
        f"{step:.3g}",
        f"{inputs.low:.3g} … {inputs.high:.3g}",
        f"{codes.first * step:.3g} … {codes.last * step:.3g}",
        f"{100 * inputs.beyond / codes.n:.2f} %" if codes.n else "",
    ]
