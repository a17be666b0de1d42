"""The calibration loop: stage by stage, find the input grids, fold the LayerNorms, sum the moments, solve the layers.

With `-O inputs=float` every layer sees the full-precision model's inputs (docs/method.md, "Order of the steps"): layers
are independent and their order does not matter. With `quantized` a layer sees what the quantized layers before it make
of the images, so they are solved in the order in which data reaches them. A stage stays float until the last of its
layers is solved.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import cast

import torch
from torch import Tensor, nn

from erq_export import __version__
from erq_export.contract.bundle import Bundle, LayerStatistics
from erq_export.contract.errors import DataError
from erq_export.contract.formats.affine import Grid, quantize
from erq_export.contract.quantized import Outliers, QuantizedLayer, QuantizedOperand, install, on_cpu
from erq_export.contract.sites import Site, Stage, submodule
from erq_export.contract.spec import Quantization
from erq_export.contract.targets import GridRules
from erq_export.data.calibration_set import CalibrationSet
from erq_export.models.loading import Loaded

from .capture import unseen, walk
from .moments import Moments
from .operands import quantized_operands
from .phases import Phases
from .ranges import act_bits, input_grids
from .setting import Setting
from .solve.problem import Problem, Solution
from .states import States, deployed_moments, stage_moments

Part = QuantizedLayer | QuantizedOperand
Progress = Callable[[str, int, int], None]

# Images that go through a stage together. Fixed, so that equal images give equal bytes: a matrix product of another height
# rounds otherwise in its last bit, and a code or a flip that lies on the border follows it.
CHUNK = 8


def calibrate(
    loaded: Loaded,
    data: CalibrationSet,
    asked: Quantization,
    *,
    device: torch.device,
    progress: Progress,
    phases: Phases | None = None,
    chunk_size: int = CHUNK,
) -> Bundle:
    """Find the integers of every quantized layer. Consumes `loaded.model`: it becomes the quantized model.

    `phases` collects the seconds spent on ranges, on moments (the forward passes are in both), in the solver and on
    the layers' statistics.
    Another `chunk_size` changes the last bits of sums, and rows that meet a tie; on the command line it is not to be had.

    Bounded memory: the model, the calibration set's hidden states (`States`), one stage's moments. SpecError where a layer's
    system cannot be solved, DataError where the float model overflows; MachineError never: the device is the caller's choice.
    """
    phases = Phases() if phases is None else phases
    setting = Setting.of(asked)
    torch.backends.cuda.matmul.allow_tf32 = False
    model, stages = loaded.model.to(device), loaded.stages
    layers: dict[str, QuantizedLayer] = {}
    operands: dict[str, QuantizedOperand] = {}
    statistics: dict[str, LayerStatistics] = {}
    states = States.of([chunk.to(device) for chunk in data.pixels.split(chunk_size)], setting.options)
    for i, stage in enumerate(stages):
        progress(stage.name, i, len(stages))
        with phases("ranges"):
            grids = input_grids(model, stage, states.for_ranges, setting)
            stage_operands = quantized_operands(model, stage, states.for_ranges, setting)
        with phases("moments"):
            if states.deployed is None:
                together, exact = stage_moments(model, stage, states.exact, grids)
            else:
                together, exact = {}, walk(model, stage, states.exact, unseen)
        refuse_non_finite(stage, exact)
        solved: dict[str, QuantizedLayer] = {}
        for site in stage.sites:
            path, linear = site.path, cast(nn.Linear, submodule(model, site.path, nn.Linear))
            with phases("moments"):
                if states.deployed is None:
                    moments = together.pop(path)
                else:
                    before: dict[str, Part] = {**stage_operands, **solved}
                    moments = deployed_moments(
                        model, stage, site, states.exact, states.deployed, grids.get(path), before
                    )
            problem = layer_problem(linear, moments, site, setting)
            with phases("solver"):
                solution = setting.solve(problem)
            solved[path] = assemble(
                solution, grids.get(path), w_bits=problem.w_bits, a_bits=act_bits(site, setting), rules=setting.rules
            )
            with phases("statistics"):
                statistics[path] = layer_statistics(problem, solution)
        with phases("moments"):
            states = states.past(model, stage, exact, grids=grids, layers=solved, operands=stage_operands)
        parts: dict[str, Part] = {**solved, **stage_operands}
        for path, part in parts.items():
            install(model, path, part)
        layers |= {path: on_cpu(layer) for path, layer in solved.items()}
        operands |= {path: on_cpu(operand) for path, operand in stage_operands.items()}
    progress("done", len(stages), len(stages))
    own = tuple(f"{path}." for path in layers | operands)
    leftovers = {name: t.cpu() for name, t in model.state_dict().items() if not name.startswith(own)}
    packages = {name: version(name) for name in ("torch", "timm")}
    return Bundle(
        spec=asked,
        identity=loaded.identity,
        layers=layers,
        operands=operands,
        leftovers=leftovers,
        data=data.fingerprint,
        statistics=statistics,
        versions={"erq-export": __version__} | packages,
    )


def refuse_non_finite(stage: Stage, exact: Sequence[Tensor]) -> None:
    """DataError for a float model that overflows: sums of its activations would hold NaN, and no grid fits infinity."""
    if not all(bool(torch.isfinite(h).all()) for h in exact):
        raise DataError(
            f"the float model itself gives NaN or infinity on the calibration images, first in stage {stage.name}",
            fix="check the checkpoint and --preprocess mean and std: does the model work in float32?",
        )


def layer_problem(linear: nn.Linear, moments: Moments, site: Site, setting: Setting) -> Problem:
    """A Linear without a bias gets one of zeros: every deployed layer adds a bias, and Aqer makes use of it."""
    weight = linear.weight.double()
    bias = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias.double()
    return Problem(
        weight=weight, bias=bias, moments=moments, role=site.role, w_bits=setting.bits.w, rules=setting.rules
    )


def assemble(solution: Solution, act: Grid | None, *, rules: GridRules, w_bits: int, a_bits: int) -> QuantizedLayer:
    """The solution as stored: int8 integers (int32 where ranges need not hold 0), float32 scales and bias."""
    codes, starts = (torch.int8, torch.int16) if rules.holds_zero else (torch.int32, torch.int32)
    usual, outliers = 0, None
    if solution.outliers is not None:
        inside = torch.isin(torch.arange(solution.q.shape[1], device=solution.q.device), solution.outliers)
        first, usual = int(solution.outliers[0]), int(inside.int().argmin())
        outliers = Outliers(
            columns=solution.outliers,
            scale=solution.grid.scale[:, first].contiguous(),
            qmin=solution.grid.qmin[:, first].to(starts),
        )
    return QuantizedLayer(
        weight_q=solution.q.to(codes),
        weight_scale=solution.grid.scale[:, usual].float().contiguous(),
        weight_qmin=solution.grid.qmin[:, usual].to(starts),
        bias=solution.bias.float(),
        act=act,
        w_bits=w_bits,
        a_bits=a_bits,
        outliers=outliers,
    )


def layer_statistics(problem: Problem, solution: Solution) -> LayerStatistics:
    """Output errors on the calibration rows, relative to the output's energy: with only the inputs quantized, with
    the weights then rounded to nearest, and as solved."""
    W, moments = problem.augmented, problem.moments
    nearest = torch.cat([quantize(problem.weight, solution.grid) * solution.grid.scale, problem.bias[:, None]], 1)
    solved = torch.cat([solution.q * solution.grid.scale, solution.bias[:, None]], 1)
    energy, *errors = moments.output_errors(W, [torch.zeros_like(W), W, nearest, solved])
    of_inputs, of_nearest, as_solved = (error / max(energy, 1e-300) for error in errors)
    return LayerStatistics(n_rows=moments.n_rows, error_inputs=of_inputs, error_nearest=of_nearest, error=as_solved)
