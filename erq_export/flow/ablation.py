"""What each choice costs that leads from the published scheme to what is deployed: one row a choice, over several seeds."""

from dataclasses import dataclass
from typing import Any

from msgspec import structs

from erq_export.calibrate.published.papers import published
from erq_export.contract.bundle import Bundle
from erq_export.contract.report import PriceRow
from erq_export.contract.spec import Quantization
from erq_export.contract.targets import deployable
from erq_export.data.held_out import Images, Prepared
from erq_export.flow.compare import layer_error, seeds, summary
from erq_export.flow.job import Job
from erq_export.flow.parallel import Piece, fill_store
from erq_export.flow.work import Work
from erq_export.models.aliases import paper_ridge

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
    ("scales and ranges legal on {target_words}", ("rules",)),
    ("input ranges of {input_ranges} activations", ("input_ranges",)),
    (
        "input ranges from the {input_percentiles} percentiles, by the {range_error}'s error",
        ("input_percentiles", "range_error"),
    ),
    ("weight ranges from the {weight_percentiles} percentiles", ("weight_percentiles",)),
    ("the grid of proj's input folded into the values", ("fold_values",)),
    ("streams and values rotated: {rotate}", ("rotate",)),
    ("layers fitted to {inputs} inputs", ("inputs",)),
    ("rounding rule {rounding}", ("rounding", "flips")),
    ("up to {row_steps} row steps", ("row_steps",)),
    ("ridge of head and patch embedding as of the layers", ("head_ridge", "patch_factor")),
    ("the class token counts {class_weight} times", ("class_weight",)),
    ("ridge {ridge}", ("ridge",)),
)
OWN = ("bits", "attention", "rules")  # fields of the slice; the other choices are options of the method


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row: what changed in words, which options, and the whole setting then."""

    change: str
    options: dict[str, Any]
    spec: Quantization


def steps(job: Job, paper: str, *, has_reduction: bool) -> list[Step]:
    """From the published setting to the job's own, in CHOICES' order; a choice that changes nothing has no row.

    What CHOICES does not name is one last row, another method included, so the last setting is the job's.
    """
    wanted = job.quantization
    spec = published(wanted, paper, ridge=paper_ridge(job.model.name))
    if not has_reduction and "fold_reduction" in wanted.options:
        spec = _changed(spec, {"fold_reduction": wanted.options["fold_reduction"]})
    found = [Step(change=f"the published scheme ({paper})", options={}, spec=spec)]
    goal = wanted.options | {name: getattr(wanted, name) for name in OWN}
    words = goal | {
        "attention_words": ATTENTION.get(wanted.attention, wanted.attention).format(**wanted.options),
        "target_words": " and ".join(deployable(job.deploy.targets)),
    }
    for change, names in CHOICES:
        now = spec.options | {name: getattr(spec, name) for name in OWN}
        options = {name: goal[name] for name in names if name in goal and goal[name] != now[name]}
        if options:
            spec = _changed(spec, options)
            found.append(Step(change=change.format(**words), options=options, spec=spec))
    if spec != wanted:
        rest = {k: v for k, v in wanted.options.items() if spec.options.get(k, v) != v or k not in spec.options}
        options = rest | ({"method": wanted.method} if spec.method != wanted.method else {})
        found.append(Step(change=f"the other options: {', '.join(options)}", options=options, spec=wanted))
    return found


def _changed(spec: Quantization, options: dict[str, Any]) -> Quantization:
    own = {name: value for name, value in options.items() if name in OWN}
    return structs.replace(spec, **own, options=spec.options | {k: v for k, v in options.items() if k not in OWN})


def price(work: Work, images: Images | None) -> tuple[PriceRow, ...]:
    """One row a step, each figure over the seeds of the comparison: top-1 where there are labels, ‖ŷ − y‖/‖y‖ of the
    logits y of the float model, on the held-out images or else on those of the calibration, and the layers' error."""
    job, rows = work.job, []
    roles = {site.role for stage in work.model.stages for site in stage.sites}
    chosen, n_seeds = steps(job, job.published or DEFAULT_PAPER, has_reduction="reduction" in roles), job.evaluate.seeds
    fill_store(
        work, "erq_export.flow.ablation:measure_piece", [(s.spec, "int8", k) for s in chosen for k in seeds(job)]
    )
    for i, step in enumerate(chosen):
        results = []
        for k, seed in enumerate(seeds(job)):
            work.ui.progress(f"{step.change}, seed {seed}", i * n_seeds + k, len(chosen) * n_seeds)
            results.append(_measured(work.quiet, step.spec, seed, images))
        rows.append(PriceRow(change=step.change, options=step.options, **summary(results)))
    return tuple(rows)


def _measured(work: Work, spec: Quantization, seed: int, images: Images | None) -> dict[str, float]:
    data = work.calibration_images(seed)
    bundle = work.stages.bundle(work.model, data, spec)
    seen = images or Prepared(tensor=data.pixels, fingerprint=data.sha256)
    found = {"logits_error": work.stages.logits_error(bundle, work.model, seen)}
    if seen.labels is not None:
        found = {"top1": work.reference_decisions(bundle, seen).top1()} | found
    return found | {"layer_error": layer_error(bundle.read(Bundle.load))}


def measure_piece(work: Work, piece: Piece) -> None:
    """`_measured` in another process, for the sake of the store."""
    _measured(work, piece.asked, piece.seed, work.held_out)
