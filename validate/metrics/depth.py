"""How a quantized model's error grows with depth: behind every block, of its weights alone, its inputs alone, and both.

Letters:  y a block's output in the float model, ŷ the same with layers quantized up to there
Weights of a method that fits them to quantized inputs make good a part of the inputs' error: alone they may be worse than both.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from erq_export.contract.story import BlockError

from .partly import Modules, Partly, Sums


def by_depth(float_model: Partly, variants: Mapping[str, Modules], batches: Iterable[Tensor]) -> tuple[BlockError, ...]:
    """One row a stage; `variants` are what stands in the model for weights, activations and both. A batch at a time is held,
    with its hidden states behind every stage."""
    names = [stage.name for stage in float_model.stages]
    sums = {what: [Sums() for _ in names] for what in variants}
    for pixels in batches:
        exact = float_model.run(pixels, {})
        for what, modules in variants.items():
            for sum_, y_hat, y in zip(sums[what], float_model.run(pixels, modules)[1:], exact[1:], strict=True):
                sum_.add(y_hat, y)
    relative = {what: [s.relative for s in found] for what, found in sums.items()}
    return tuple(
        BlockError(
            path=name,
            entering=relative["both"][i - 1] if i else 0.0,  # the image
            **{what: relative[what][i] for what in ("weights", "activations", "both")},
        )
        for i, name in enumerate(names)
    )
