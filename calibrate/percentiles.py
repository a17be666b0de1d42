"""The percentiles that range searches try."""

from collections.abc import Mapping

REPQ = (0.999, 0.9999, 0.99999)  # RepQ-ViT, for activations and weights alike; ERQ for activations

# of a weight row. repq: hardly more than the largest weight, presumably the first paper's; wide: the extended paper's (TPAMI)
WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "wide": (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999, 1.0),
    "repq": REPQ,
}

# of a layer's input. full: the extended paper's code for super-resolution. More clipping than repq's gains in the tensors'
# own error and loses in the network's output (docs/beyond-the-paper.md)
INPUTS: Mapping[str, tuple[float, ...]] = {"full": (*REPQ, 1.0), "repq": REPQ}
