"""--budget: the weight bits of every layer chosen by what each width costs the model's outputs, on images not calibrated on."""

from collections.abc import Mapping
from dataclasses import replace

from msgspec import structs

from erq_export.calibrate.choice import Choice, Layer, chosen
from erq_export.contract.bits import Bits
from erq_export.contract.errors import DataError
from erq_export.data.held_out import Images
from erq_export.flow.scene import Scene, looked_at
from erq_export.flow.work import Work
from erq_export.validate.metrics.sensitivity import swapped

WIDTHS = (2, 3, 4, 6, 8)  # of weights, that a layer may get
N_JUDGED = 32  # images


def settled(work: Work) -> Work:
    """The work with its bits chosen, as overrides, and no budget left; as it is where none was asked for.

    Layers that --bits gives bits of their own keep them. DataError where all images are calibrated on: a layer of few rows,
    such as the head, would look free at any width on those.
    """
    budget = work.job.method.budget
    if budget is None:
        return work
    base = work.job.method.bits
    work = _with(work, base)
    data = work.calibration_images(work.job.data.seed)
    images, seen_on = looked_at(replace(work, held_out=None), data, N_JUDGED)
    if seen_on == "calibrated on":
        raise DataError(
            f"--budget {budget:g}: all {len(data.pixels)} images are calibrated on, none is left to judge widths by",
            fix=f"more images than --calib; up to {N_JUDGED} others are used",
        )
    with work.stage("choose bits"):
        scene = scene_of(work, data_seed=work.job.data.seed)
        layers = candidates(scene, images)
        choice = chosen(layers, budget)
        bits = as_overrides(base, choice)
        work.ui.note(
            f"--budget {budget:g}: mean {choice.mean_bits:.2f} weight bits ({choice.status}), {_counted(choice.bits)}"
        )
    return _with(work, bits)


def scene_of(work: Work, *, data_seed: int) -> Scene:
    """The work's own bundle, and what it was calibrated on."""
    data = work.calibration_images(data_seed)
    return Scene(work=work, artifact=work.stages.bundle(work.model, data, work.job.quantization), data=data)


def candidates(scene: Scene, images: Images) -> list[Layer]:
    """Every layer with the widths that it may have, each at what it costs alone: Σ‖ŷ − y‖²/Σ‖y‖² of the outputs with that
    layer quantized and all others float. One calibration a width, over the job's base."""
    bits, own = scene.bundle.spec.bits, scene.bundle.layers
    free = [path for path in own if bits.at(path) == bits.base]
    costs: dict[str, dict[int, float]] = {path: {} for path in own}
    chunks, told = scene.chunks(images), scene.work.ui.progress
    for w in WIDTHS:
        everywhere = scene.layers(scene.with_all_at(Bits(w=w, a=bits.a)), "both")
        wanted = [(path, everywhere[path]) for path in free]
        _, found = swapped(scene.float_model, {}, wanted, chunks, progress=told, what=f"each layer at w{w}")
        for (path, _), cost in zip(wanted, found, strict=True):
            costs[path][w] = cost
    for path in own:
        costs[path] = costs[path] or {bits.at(path).w: 0.0}
    return [Layer(path=path, n=layer.weight_q.numel(), costs=costs[path]) for path, layer in own.items()]


def as_overrides(base: Bits, choice: Choice) -> Bits:
    """The explicit setting: an override for every layer whose width is not its own already."""
    changed = [(path, w) for path, w in choice.bits.items() if base.at(path).w != w]
    return base.over(*((path, Bits(w=w, a=base.at(path).a)) for path, w in changed))


def _with(work: Work, bits: Bits) -> Work:
    method = structs.replace(work.job.method, bits=bits, budget=None)
    return replace(work, job=structs.replace(work.job, method=method))


def _counted(bits: Mapping[str, int]) -> str:
    counts = {w: list(bits.values()).count(w) for w in sorted(set(bits.values()))}
    return ", ".join(f"{n} layers at w{w}" for w, n in counts.items())
