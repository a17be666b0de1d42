"""What each choice costs that leads from the published scheme to what is deployed: one row a choice, over several seeds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.published.papers import published
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.spec import QuantSpec
from erq_export.contract.targets import deployable
from erq_export.data.calibration_set import calibration_set
from erq_export.data.images import ImageSource, batches
from erq_export.flow.compare import layer_error, summary
from erq_export.flow.job import Job
from erq_export.flow.ui import Ui
from erq_export.models.loading import load
from erq_export.models.rebuild import reference_model
from erq_export.validate.metrics.accuracy import BATCH, evenly_spread
from erq_export.validate.metrics.distance import relative_l2
from erq_export.validate.runners import TorchRunner

DEFAULT_PAPER = "icml"
ATTENTION = {
    "fp16": "q, k, v and softmax not quantized",
    "int8": "q, k, v and softmax uniform at {attention_bits} bits",
}

# In this order: what no target can run, then what targets ask of the grids, then what this tool does on its own account.
CHOICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("zero points rounded to integers", ("zero_points",)),
    ("one grid a weight row", ("dual",)),
    ("the image in 8 bits", ("patch_input",)),
    ("{attention_words}", ("attention", "attention_bits")),
    ("the LayerNorm of reduction folded", ("fold_reduction",)),
    ("scales and ranges legal on {target_words}", ("targets",)),
    ("input ranges of {input_ranges} activations", ("input_ranges",)),
    ("weight ranges from the {weight_percentiles} percentiles", ("weight_percentiles",)),
    ("layers fitted to {inputs} inputs", ("inputs",)),
    ("rounding rule {rounding}", ("rounding", "flips")),
    ("up to {row_steps} row steps", ("row_steps",)),
    ("ridge of the head as of the layers", ("head_ridge",)),
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row: what changed in words, which options, and the whole setting then."""

    change: str
    options: dict[str, Any]
    spec: QuantSpec


def steps(quant: QuantSpec, paper: str, *, has_reduction: bool) -> list[Step]:
    """From the published setting to `quant`, in CHOICES' order; a choice that changes nothing has no row.

    What CHOICES does not name is one last row, so the last setting is `quant` itself.
    """
    spec = published(quant, paper)
    if not has_reduction:
        spec = replace(spec, fold_reduction=quant.fold_reduction)
    found = [Step(change=f"the published scheme ({paper})", options={}, spec=spec)]
    words = {
        "attention_words": ATTENTION.get(quant.attention, quant.attention).format(attention_bits=quant.attention_bits),
        "target_words": " and ".join(deployable(quant.targets)),
    }
    rest = tuple(f.name for f in fields(QuantSpec))
    for change, names in (*CHOICES, ("the other options: {names}", rest)):
        options = {name: getattr(quant, name) for name in names if getattr(quant, name) != getattr(spec, name)}
        if options:
            spec = replace(spec, **options)
            plain = {f.name: getattr(spec, f.name) for f in fields(spec)}
            text = change.format(**plain | words | {"names": ", ".join(options)})
            found.append(Step(change=text, options=options, spec=spec))
    return found


def price(
    job: Job, images: ImageSource, held_out: ImageSource | None, device: torch.device, ui: Ui
) -> list[dict[str, Any]]:
    """One row a step, each figure over the seeds of the comparison: top-1 where there are labels, ‖ŷ − y‖/‖y‖ of the
    logits y of the float model, on the held-out images or else on those of the calibration, and the layers' error."""
    model = load(job.model, seed=job.quant.seed)
    preprocess, limit = model.identity.preprocess, job.val_images or None
    roles = {site.role for stage in model.stages for site in stage.sites}
    chosen = steps(job.quant, job.published or DEFAULT_PAPER, has_reduction="reduction" in roles)
    exam = None if held_out is None else Exam.of(held_out, preprocess, limit, TorchRunner(model.model, device))
    rows = []
    for i, step in enumerate(chosen):
        results = []
        for k in range(job.seeds):
            ui.progress(f"{step.change}, seed {job.quant.seed + k}", i * job.seeds + k, len(chosen) * job.seeds)
            spec = replace(step.spec, seed=job.quant.seed + k)
            results.append(_measure(job, spec, images, exam, device))
        options = {name: list(v) if isinstance(v, tuple) else v for name, v in step.options.items()}
        rows.append({"change": step.change, "options": options, **summary(results)})
    return rows


@dataclass(frozen=True)
class Exam:
    """Images, decoded anew each time they are looked at; their labels, if any; the float model's logits (n, classes)."""

    pixels: Callable[[], Iterable[Tensor]]
    labels: Tensor | None
    wanted: Tensor

    @classmethod
    def of(cls, source: ImageSource, preprocess: Preprocess, limit: int | None, model: TorchRunner) -> "Exam":
        """All of `source`, or `limit` images."""
        chosen = evenly_spread(len(source), limit)
        labels = None if source.labels is None else torch.tensor([source.labels[i] for i in chosen])

        def pixels() -> Iterable[Tensor]:
            return batches(source, preprocess, chosen, BATCH)

        return cls(pixels, labels, logits(model, pixels()))

    def figures(self, model: TorchRunner) -> dict[str, float]:
        """Top-1 in per cent where there are labels, and how far the logits are from the float model's."""
        found = logits(model, self.pixels())
        error = {"logits_error": relative_l2(found, self.wanted)}
        if self.labels is None:
            return error
        return {"top1": 100 * float((found.argmax(1) == self.labels).double().mean())} | error


def logits(model: TorchRunner, pixels: Iterable[Tensor]) -> Tensor:
    """(n, classes)."""
    return torch.cat([model.logits(batch) for batch in pixels])


def _measure(
    job: Job, spec: QuantSpec, images: ImageSource, exam: Exam | None, device: torch.device
) -> dict[str, float]:
    loaded = load(job.model, seed=job.quant.seed)
    data = calibration_set(images, loaded.identity.preprocess, n=spec.calib, seed=spec.seed)
    if exam is None:
        exam = Exam(lambda: [data.pixels], None, logits(TorchRunner(loaded.model, device), [data.pixels]))
    bundle = calibrate(loaded, data, spec, device=device, progress=lambda *_: None)
    return exam.figures(TorchRunner(reference_model(bundle), device)) | {"layer_error": layer_error(bundle)}
