"""The calibration loop: stage by stage, find the input grids, fold the LayerNorms, sum the moments, solve the layers.

Every layer sees the full-precision model's inputs (erq.md section 6, P4): a stage's hidden state is advanced with its float
weights before its quantized ones are installed, so layers are independent and their order does not matter.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import cast

import torch
from torch import Tensor, nn

from erq_export import __version__
from erq_export.affine import Grid, fake_quantize, quantize
from erq_export.bundle import Bundle
from erq_export.meter import Phases
from erq_export.models.family import Site, Stage, submodule
from erq_export.models.loading import Loaded
from erq_export.quantized import QuantizedLayer, QuantizedOperand, install
from erq_export.registry import METHODS, resolve
from erq_export.spec import QuantSpec

from .capture import walk
from .data import CalibrationSet
from .method import Method, Problem, Solution
from .moments import Moments
from .observers import RangeSearch, Tails, groups
from .operands import quantized_operands
from .reparam import fold

Progress = Callable[[str, int, int], None]

CHUNK = 8  # images that go through a stage together
PATCH_BITS = 8  # of the image at the patch embedding, whatever the other activations have (RepQ-ViT)


def calibrate(
    loaded: Loaded,
    data: CalibrationSet,
    spec: QuantSpec,
    *,
    device: torch.device,
    progress: Progress,
    phases: Phases | None = None,
) -> Bundle:
    """Find the integers of every quantized layer. Consumes `loaded.model`: it becomes the quantized model.

    `phases` collects the seconds spent on ranges, on moments (the forward passes are in both), in the solver and on
    the layers' statistics.

    Bounded memory: the model, the hidden state of the calibration set, one stage's moments. SpecError where a layer's
    system cannot be solved; MachineError never: the device is the caller's choice.
    """
    phases = Phases() if phases is None else phases
    method: Method = resolve("method", spec.method, METHODS)
    torch.backends.cuda.matmul.allow_tf32 = False
    model, stages = loaded.model.to(device), loaded.stages
    layers: dict[str, QuantizedLayer] = {}
    operands: dict[str, QuantizedOperand] = {}
    statistics: dict[str, dict[str, float]] = {}
    hidden: Sequence[Tensor] = [chunk.to(device) for chunk in data.pixels.split(CHUNK)]
    for i, stage in enumerate(stages):
        progress(stage.name, i, len(stages))
        with phases("ranges"):
            grids = input_grids(model, stage, hidden, spec, reparameterize=method.reparameterize)
            operands |= quantized_operands(model, stage, hidden, spec)
        with phases("moments"):
            moments, hidden = stage_moments(model, stage, hidden, grids)
        for site in stage.sites:
            linear = cast(nn.Linear, submodule(model, site.path, nn.Linear))
            problem = layer_problem(linear, moments.pop(site.path), site, spec)
            with phases("solver"):
                solution = method.solve(problem)
            layer = assemble(solution, grids[site.path], w_bits=problem.w_bits, a_bits=act_bits(site, spec))
            layers[site.path] = layer
            with phases("statistics"):
                statistics[site.path] = layer_statistics(problem, solution)
            install(model, site.path, layer)
        for operand in stage.operands:
            if operand.path in operands:
                install(model, operand.path, operands[operand.path])
    progress("done", len(stages), len(stages))
    own = tuple(f"{path}." for path in layers | operands)
    leftovers = {name: t.cpu() for name, t in model.state_dict().items() if not name.startswith(own)}
    packages = {name: version(name) for name in ("torch", "timm")}
    return Bundle(
        spec=spec,
        identity=loaded.identity,
        layers=layers,
        operands=operands,
        leftovers=leftovers,
        data=data.to_json(),
        statistics=statistics,
        versions={"erq-export": __version__} | packages,
    )


def act_bits(site: Site, spec: QuantSpec) -> int:
    """Designed bits of a site's input."""
    return PATCH_BITS if site.role == "patch" else spec.bits.a


def input_grids(
    model: nn.Module, stage: Stage, hidden: Sequence[Tensor], spec: QuantSpec, *, reparameterize: bool
) -> dict[str, Grid]:
    """The per-tensor grid of every site's input; LayerNorm-fed sites are reparameterised in place on the way.

    Two passes over the stage: the tails that give exact percentiles, then the squared error of each percentile's grid.
    """
    n_images = sum(len(h) for h in hidden)
    fold_sites = {s.path: s for s in stage.sites if reparameterize and s.norm is not None}
    tails: dict[str, Tails] = {}

    def see_tails(path: str, x: Tensor) -> None:
        values = groups(x, per_channel=path in fold_sites)
        if path not in tails:
            tails[path] = Tails.of(values.shape[1] // len(hidden[0]) * n_images)
        tails[path].add(values)

    walk(model, stage, hidden, see_tails)
    bits = {s.path: act_bits(s, spec) for s in stage.sites}
    searches = {
        path: RangeSearch.from_tails(t, bits=bits[path], rules=spec.rules, per_channel=path in fold_sites)
        for path, t in tails.items()
    }
    walk(model, stage, hidden, lambda path, x: searches[path].add(x))
    grids = {path: search.best() for path, search in searches.items()}
    return {path: reparameterized(model, fold_sites[path], grid, spec) if path in fold_sites else grid
            for path, grid in grids.items()}  # fmt: skip


def reparameterized(model: nn.Module, site: Site, per_channel: Grid, spec: QuantSpec) -> Grid:
    """Fold a site's per-channel grid into its LayerNorm and its Linear; returns the per-tensor grid that is left."""
    norm = cast(nn.LayerNorm, submodule(model, str(site.norm), nn.LayerNorm))
    linear = cast(nn.Linear, submodule(model, site.path, nn.Linear))
    like = linear.weight[0]
    gamma = torch.ones_like(like) if norm.weight is None else norm.weight
    beta = torch.zeros_like(like) if norm.bias is None else norm.bias
    folded = fold(gamma, beta, linear.weight, linear.bias, per_channel, bits=act_bits(site, spec), rules=spec.rules)
    norm.elementwise_affine = True
    for module, name, value in (
        (norm, "weight", folded.gamma),
        (norm, "bias", folded.beta),
        (linear, "weight", folded.weight),
        (linear, "bias", folded.bias),
    ):
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return folded.grid


def stage_moments(
    model: nn.Module, stage: Stage, hidden: Sequence[Tensor], grids: dict[str, Grid]
) -> tuple[dict[str, Moments], list[Tensor]]:
    """The moments of every site in one pass, and the stage's full-precision output, which is the next hidden state."""
    moments: dict[str, Moments] = {}

    def add(path: str, x: Tensor) -> None:
        if path not in moments:
            moments[path] = Moments.zero(x.shape[1], bias=True, device=x.device)
        moments[path].add(x, fake_quantize(x, grids[path]))

    return moments, walk(model, stage, hidden, add)


def layer_problem(linear: nn.Linear, moments: Moments, site: Site, spec: QuantSpec) -> Problem:
    """A Linear without a bias gets one of zeros: every deployed layer adds a bias, and Aqer makes use of it."""
    weight = linear.weight.double()
    bias = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias.double()
    return Problem(weight=weight, bias=bias, moments=moments, role=site.role, w_bits=spec.bits.w, spec=spec)


def assemble(solution: Solution, act: Grid, *, w_bits: int, a_bits: int) -> QuantizedLayer:
    """The solution as stored: int8 integers, float32 scales and bias."""
    return QuantizedLayer(
        weight_q=solution.q.to(torch.int8),
        weight_scale=solution.grid.scale[:, 0].float().contiguous(),
        weight_qmin=solution.grid.qmin[:, 0].to(torch.int16),
        bias=solution.bias.float(),
        act=act,
        w_bits=w_bits,
        a_bits=a_bits,
    )


def layer_statistics(problem: Problem, solution: Solution) -> dict[str, float]:
    """Output errors on the calibration rows, relative to the output's energy: with only the inputs quantized, with
    the weights then rounded to nearest, and as solved."""
    W, moments = problem.augmented, problem.moments
    nearest = torch.cat([quantize(problem.weight, solution.grid) * solution.grid.scale, problem.bias[:, None]], 1)
    solved = torch.cat([solution.q * solution.grid.scale, solution.bias[:, None]], 1)
    energy, *errors = moments.output_errors(W, [torch.zeros_like(W), W, nearest, solved])
    relative = [error / max(energy, 1e-300) for error in errors]
    names = ("error_inputs", "error_nearest", "error")
    return {"n_rows": float(moments.n_rows)} | dict(zip(names, relative, strict=True))
