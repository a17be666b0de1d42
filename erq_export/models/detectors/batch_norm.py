"""Batch normalisation behind a convolution, folded into it.

Letters:  W (n, …) the convolution's weight, without bias;  γ, β, μ, σ² (n,) of the normalisation
          (W x − μ) γ / √(σ² + ε) + β  =  (r W) x + (β − r μ)        r = γ / √(σ² + ε)
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import shown

EPSILON = 1e-5  # torch's and the published models' own
STATISTICS = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"
FIX = "a whole file of a published detector"


def without_batch_norm(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict with every `P.bn` folded into the convolution `P.conv` beside it, which gets a bias. In float64.

    DataError naming a tensor that is missing, of another size, or no variance.
    """
    out = dict(state)
    for prefix in sorted({name.removesuffix(".bn.running_var") for name in state if name.endswith(".bn.running_var")}):
        conv = f"{prefix}.conv.weight"
        names = [f"{prefix}.bn.{part}" for part in STATISTICS]
        for name in (conv, *names):
            if name not in state:
                raise DataError(f"the checkpoint {shown(path)}: {shown(name)} is missing in the file", fix=FIX)
        weight = state[conv].double()
        gamma, beta, mean, variance = (state[name].double() for name in names)
        for name in names:
            if not weight.dim() or state[name].shape != weight.shape[:1]:
                problem = f"{shown(name)} does not fit the rows of {shown(conv)}"
                raise DataError(f"the checkpoint {shown(path)}: {problem}", fix=FIX)
        if not bool((variance >= 0).all()):
            raise DataError(f"the checkpoint {shown(path)}: {shown(names[3])} holds what is no variance", fix=FIX)
        ratio = gamma / torch.sqrt(variance + EPSILON)
        out[conv] = (weight * ratio.reshape(-1, *[1] * (weight.dim() - 1))).float()
        out[f"{prefix}.conv.bias"] = (beta - ratio * mean).float()
        for name in (*names, f"{prefix}.bn.{COUNTER}"):
            out.pop(name, None)
    return out
