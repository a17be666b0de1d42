"""The calibration loop: stage by stage, find the input grids, fold the LayerNorms, sum the moments, solve the layers.

With `-O inputs=float` every layer sees the full-precision model's inputs (docs/method.md, "Order of the steps"): layers
are independent and their order does not matter. With `quantized` a layer sees what the quantized layers before it make
of the images, so they are solved in the order in which data reaches them. A stage stays float until the last of its
layers is solved. What a finished stage leaves is kept in checkpoints, where the caller gives a place for them.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from torch import nn

from erq_export import __version__
from erq_export.contract.bundle import Bundle, Layer, Operand
from erq_export.contract.errors import DataError, SpecError
from erq_export.contract.progress import Progress
from erq_export.contract.rows import LayerStatistics
from erq_export.contract.sites import Stage
from erq_export.contract.spec import Quantization
from erq_export.contract.state import State, moved, tensors
from erq_export.data.calibration_set import CalibrationData
from erq_export.models.loading import Loaded

from .bases import better_bases
from .capture import unseen, walk
from .known_ranges import KnownRanges
from .layer import layer_problem, layer_statistics
from .phases import Phases
from .ranges import input_grids
from .resume import Checkpoints, StagePart, finish_stage, load_stage, norms_of, save_stage
from .rotation import rotate
from .scheme import scheme_of
from .setting import Setting
from .states import Installed, States, deployed_moments, stage_moments

# Images that go through a stage together. Fixed, so that equal images give equal bytes: a matrix product of another height
# rounds otherwise in its last bit, and a code or a flip that lies on the border follows it.
CHUNK = 8


def calibrate(
    loaded: Loaded,
    data: CalibrationData,
    asked: Quantization,
    *,
    device: torch.device,
    progress: Progress,
    phases: Phases | None = None,
    chunk_size: int = CHUNK,
    checkpoints: Checkpoints | None = None,
    known: KnownRanges | None = None,
) -> Bundle:
    """Find the integers of every quantized layer. Consumes `loaded.model`: it becomes the quantized model.

    `phases` collects the seconds spent on ranges, on moments (the forward passes are in both), in the solver and on
    the layers' statistics. With `checkpoints` of an earlier call with the same model, images, slice and device that was
    stopped, it goes on behind the last stage that was finished, to the same bytes. Grids in `known` are not searched
    again, and it learns those that are.
    Another `chunk_size` changes the last bits of sums, and rows that meet a tie; on the command line it is not to be had.

    Bounded memory: the model, the calibration set's hidden states (`States`), one stage's moments. SpecError where a layer's
    system cannot be solved, DataError where the float model overflows; MachineError never: the device is the caller's choice.
    """
    phases = Phases() if phases is None else phases
    known = KnownRanges() if known is None else known
    setting = Setting.of(asked)
    refuse_other_boxes(loaded.stages, setting)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, chunks = loaded.model.to(device), [moved(chunk, device) for chunk in data.chunks(chunk_size)]
    bases = better_bases(loaded, moved(data.chunks(CHUNK)[0], device), setting)
    rotate(loaded, bases)
    known.begin(bases)
    stages = loaded.stages
    begun = Bundle(spec=asked, identity=loaded.identity, layers={}, leftovers={}, data=data.fingerprint, rotated=bases)
    layers: dict[str, Layer] = {}
    operands: dict[str, Operand] = {}
    statistics: dict[str, LayerStatistics] = {}
    states = States.of(chunks, setting.options)
    resuming = checkpoints is not None
    for i, stage in enumerate(stages):
        progress(stage.name, i, len(stages))
        found = load_stage(checkpoints, i, device) if checkpoints is not None and resuming else None
        resuming = found is not None
        if found is None:
            part, states = calibrate_stage(model, stage, states, setting, phases, known)
        else:
            part, states = found
        finish_stage(model, part)
        if checkpoints is not None and found is None:
            save_stage(checkpoints, i, begun, part, states)
        layers |= {path: layer.cpu() for path, layer in part.layers.items()}
        operands |= {path: operand.cpu() for path, operand in part.operands.items()}
        statistics |= part.statistics
    progress("done", len(stages), len(stages))
    own = tuple(f"{path}." for path in (*layers, *operands))
    return replace(
        begun,
        layers=layers,
        operands=operands,
        statistics=statistics,
        leftovers={name: t.cpu() for name, t in model.state_dict().items() if not name.startswith(own)},
        versions={"erq-export": __version__} | {name: version(name) for name in ("torch", "timm")},
    )


def calibrate_stage(
    model: nn.Module, stage: Stage, states: States, setting: Setting, phases: Phases, known: KnownRanges
) -> tuple[StagePart, States]:
    """One stage: what is found, and the states behind it. The stage's LayerNorms are folded in place; it stays float."""
    scheme = scheme_of(setting)
    with phases("ranges"):
        grids = input_grids(model, stage, states.for_ranges, setting, known)
        operands = scheme.operands(model, stage, states.for_ranges, setting)
    with phases("moments"):
        if states.deployed is None:
            together, exact = stage_moments(model, stage, states.exact, grids, setting.options)
        else:
            together, exact = {}, walk(model, stage, states.exact, unseen)
    refuse_non_finite(stage, exact)
    solved: dict[str, Layer] = {}
    statistics: dict[str, LayerStatistics] = {}
    for site in stage.sites:
        path = site.path
        with phases("moments"):
            if states.deployed is None:
                moments = together.pop(path)
            else:
                before: Installed = {**operands, **solved}
                moments = deployed_moments(
                    model, stage, site, states.exact, states.deployed, grids.get(path), before, setting.options
                )
        problem = layer_problem(model, moments, site, setting)
        with phases("solver"):
            solution = setting.solve(problem)
        solved[path] = scheme.layer(solution, site, grids, setting)
        with phases("statistics"):
            statistics[path] = layer_statistics(problem, solution, setting)
    with phases("moments"):
        states = states.past(model, stage, exact, grids=grids, layers=solved, operands=operands)
    return StagePart(layers=solved, operands=operands, statistics=statistics, norms=norms_of(model, stage)), states


def refuse_other_boxes(stages: Sequence[Stage], setting: Setting) -> None:
    """SpecError for states behind quantizers where they would hold other rows than the float ones: a detector's other boxes."""
    options = setting.options
    asked = [("inputs", options.deployed_inputs), ("input_ranges", options.input_ranges == "quantized")]
    varied = [stage.name for stage in stages if stage.varied]
    for name in (name for name, quantized in asked if varied and quantized):
        raise SpecError(
            f"-O {name}=quantized: {varied[0]} sees other boxes in a quantized detector than in the float one",
            fix=f"-O {name}=float",
        )


def refuse_non_finite(stage: Stage, exact: Sequence[State]) -> None:
    """DataError for a float model that overflows: sums of its activations would hold NaN, and no grid fits infinity."""
    if not all(bool(torch.isfinite(t).all()) for h in exact for t in tensors(h)):
        raise DataError(
            f"the float model itself gives NaN or infinity on the calibration images, first in stage {stage.name}",
            fix="check the checkpoint and --preprocess mean and std: does the model work in float32?",
        )
