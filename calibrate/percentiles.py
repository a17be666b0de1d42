"""The percentiles that range searches try: those of either paper, and a wider list for inputs."""

from collections.abc import Mapping

REPQ = (0.999, 0.9999, 0.99999)  # RepQ-ViT, for activations and weights alike; ERQ for activations

# of a weight row. repq: hardly more than the largest weight, presumably the first paper's; wide: the extended paper's (TPAMI)
WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "wide": (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999, 1.0),
    "repq": REPQ,
}

# of a layer's input. full: the extended paper's code for super-resolution; wide: from what 4 bits of a bell curve want
# (the best 16 levels end at 2.7 standard deviations, its 0.996 quantile) to the outliers that 8 bits have room for
INPUTS: Mapping[str, tuple[float, ...]] = {
    "wide": (0.98, 0.99, 0.995, 0.999, 0.9999, 0.99999, 1.0),
    "full": (*REPQ, 1.0),
    "repq": REPQ,
}
