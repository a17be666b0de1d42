"""What can only be measured on images of a certain kind, refused before the work where there are none. Torch-free."""

from collections.abc import Sequence

from erq_export.contract.errors import SpecError
from erq_export.contract.spec import EvaluateSpec

ON_LABELS = ("max_drop", "compare", "seeds")
ON_CLASSES = ("min_agreement",)
ON_IMAGES = ("max_logit_error",)


def asked_of(evaluate: EvaluateSpec, fields: Sequence[str]) -> list[str]:
    """The words of those fields that are not at their defaults."""
    default = EvaluateSpec()
    return [evaluate.word(name) for name in fields if getattr(evaluate, name) != getattr(default, name)]


def check_measurable(evaluate: EvaluateSpec, *, labelled: bool, headless: bool) -> None:
    """SpecError for a bound or a comparison that these images, or this model, say nothing about."""
    if words := [] if labelled else asked_of(evaluate, ON_LABELS):
        why = "the model has no head, so no image has a class" if headless else "the images have no labels"
        fix = "--max-logit-error bounds the features" if headless else "--val DIR with one folder per class"
        raise SpecError(f"{words[0]}: {why}", fix=f"{fix}, or leave {words[0]} out")
    if headless and (words := asked_of(evaluate, ON_CLASSES)):
        raise SpecError(
            f"{words[0]}: the model has no head, so it decides nothing", fix="--max-logit-error bounds the features"
        )
