"""How much memory a calibration will hold, before it begins."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from erq_export.contract.memory import require_memory
from erq_export.contract.sites import submodule
from erq_export.models.loading import Loaded

from .capture import unseen, walk
from .methods.options import Options

MIB = 2**20
F32, F64 = 4, 8


@dataclass(frozen=True, kw_only=True)
class Budget:
    """MiB: the model, the calibration set's hidden states (a stage's input and output each), the largest stage's moments
    and its largest layer's solver. The runtime and the activations of one chunk come on top."""

    model_mib: float
    hidden_mib: float
    moments_mib: float
    solver_mib: float

    def check(self) -> None:
        """MachineError where what comes on top of the loaded model needs more than there is. Of the machine's memory: for
        a calibration on the CPU."""
        require_memory(
            (self.hidden_mib + self.moments_mib + self.solver_mib) * MIB,
            f"the calibration (hidden state {self.hidden_mib:.0f} MiB, moments of one stage {self.moments_mib:.0f}, solver "
            f"{self.solver_mib:.0f})",
            fix="fewer images: --calib N; a smaller model or image; or a machine with more memory",
        )

    def says(self) -> str:
        total = self.model_mib + self.hidden_mib + self.moments_mib + self.solver_mib
        return (
            f"calibration will hold about {total:.0f} MiB besides torch itself: model {self.model_mib:.0f}, hidden state "
            f"{self.hidden_mib:.0f}, moments of one stage {self.moments_mib:.0f}, solver {self.solver_mib:.0f}"
        )


def budget(loaded: Loaded, n_images: int, options: Options) -> Budget:
    """Found with one blank image. Moments are G, D, C in float64, 3 (k + 1)² numbers a layer, of all rows and of the first
    half; the solver holds those of the second half, the factor, one copy of G and about five arrays of the weight's size.
    A second and a third hidden state walk beside the float one with `-O inputs=quantized` and `-O input_ranges=quantized`.
    """
    n_states = 1 + options.deployed_inputs + (options.input_ranges == "quantized")
    hidden: list[Tensor] = [torch.zeros(1, *loaded.identity.preprocess.input_size)]
    largest_hidden, largest_moments, largest_solver = 0, 0, 0
    for stage in loaded.stages:
        after = cast(list[Tensor], walk(loaded.model, stage, hidden, unseen))  # a classifier's
        largest_hidden = max(largest_hidden, hidden[0].numel() + after[0].numel())
        linears = [cast(nn.Linear, submodule(loaded.model, site.path, nn.Linear)) for site in stage.sites]
        largest_moments = max(largest_moments, sum(6 * (m.in_features + 1) ** 2 for m in linears))
        solvers = [5 * (m.in_features + 1) ** 2 + 5 * m.in_features * m.out_features for m in linears]
        largest_solver = max([largest_solver, *solvers])
        hidden = after
    return Budget(
        model_mib=sum(p.numel() for p in loaded.model.parameters()) * F32 / MIB,
        hidden_mib=n_states * n_images * largest_hidden * F32 / MIB,
        moments_mib=largest_moments * F64 / MIB,
        solver_mib=largest_solver * F64 / MIB,
    )
