"""The bounds that a user sets on what held-out images show, and which of them are broken."""

from collections.abc import Iterator

from erq_export.contract.accuracy import Accuracy, Judged
from erq_export.contract.parity import in_words
from erq_export.contract.spec import EvaluateSpec

from .sanity import doubt


def broken(asked: EvaluateSpec, found: Accuracy) -> list[str]:
    """One sentence for each runner and bound that does not hold, with figure and bound; a figure that is missing or no number
    holds no bound. A float model that is far from what is known of it holds none on classes."""
    runners = {"reference": found.reference} | found.graphs
    doubted = (
        [] if asked.max_drop is None and asked.min_agreement is None else [text for text in (doubt(found),) if text]
    )
    return doubted + [text for name, judged in runners.items() for text in _broken(asked, found, name, judged)]


def _broken(asked: EvaluateSpec, found: Accuracy, name: str, judged: Judged) -> Iterator[str]:
    if asked.max_drop is not None:
        if found.float_top1 is None or judged.top1 is None:
            yield f"{name}: top-1 was not measured, --max-drop {asked.max_drop} cannot hold"
        elif not found.float_top1.value - judged.top1.value <= asked.max_drop:
            drop = found.float_top1.value - judged.top1.value
            yield f"{name} is {drop:.2f} points below float, --max-drop allows {asked.max_drop}"
    if asked.min_agreement is not None:
        if judged.agreement is None:
            yield f"{name}: classes were not measured, --min-agreement {asked.min_agreement} cannot hold"
        elif not judged.agreement.value >= asked.min_agreement:
            yield (
                f"{name} has the float model's class on {judged.agreement.value:.2f} % of the images, "
                f"--min-agreement asks for {asked.min_agreement}"
            )
    if asked.max_logit_error is not None and not judged.error <= asked.max_logit_error:
        yield (
            f"{name}: the {found.outputs} are off by {in_words(judged.error)} (relative), "
            f"--max-logit-error allows {asked.max_logit_error}"
        )
