"""The float model's own accuracy comes first: far below what is known of it, no gate on classes holds."""

import pytest

from erq_export.contract.accuracy import Accuracy, Judged, Share
from erq_export.contract.spec import EvaluateSpec
from erq_export.models.aliases import ALIASES
from erq_export.validate.gates import broken
from erq_export.validate.metrics.shares import share
from erq_export.validate.sanity import FAR, doubt


def found(right: int, n: int, published: float | None) -> Accuracy:
    import torch

    top1 = share(torch.arange(n) < right)
    same = Share(value=100.0, low=90.0, high=100.0)
    judged = Judged(top1=top1, agreement=same, error=0.0, cosine=1.0)
    return Accuracy(
        n_images=n,
        n_compared=n,
        outputs="logits",
        float_top1=top1,
        reference=judged,
        graphs={},
        as_reference={},
        published_top1=published,
    )


@pytest.mark.parametrize(
    ("right", "n", "published", "doubted"),
    [
        (10, 10000, 81.39, True),  # classes in another order: chance
        (7000, 10000, 81.39, True),  # 70 %, beyond the interval
        (8000, 10000, 81.39, False),
        (15, 20, 81.39, False),  # 75 % of 20 images is 53 to 89: the sample may be to blame
        (10, 10000, None, False),  # nothing is known
    ],
)
def test_what_is_far_below_the_published_figure_is_doubted(
    right: int, n: int, published: float | None, doubted: bool
) -> None:
    accuracy = found(right, n, published)
    text = doubt(accuracy)
    assert (text is not None) == doubted
    if text is not None:
        assert all(cause in text for cause in ("--preprocess", "--class-map", f"{published:.2f}"))
    # the integers are as good as the float model in each case
    bounds = EvaluateSpec(max_drop=1.0), EvaluateSpec(min_agreement=50.0)
    assert [bool(broken(bound, accuracy)) for bound in bounds] == [doubted, doubted]
    assert broken(EvaluateSpec(), accuracy) == []


def test_the_interval_ends_where_doubt_begins() -> None:
    accuracy = found(8000, 10000, None)
    assert accuracy.float_top1 is not None
    edge = accuracy.float_top1.high + FAR
    assert doubt(found(8000, 10000, edge)) is None
    assert doubt(found(8000, 10000, edge + 1e-6)) is not None


def test_every_model_of_the_paper_has_its_figure() -> None:
    assert all((alias.top1 is not None) == (alias.in_paper or name == "demo") for name, alias in ALIASES.items())
