"""What held-out images say of a run: right classes, equal classes, equal outputs, each with how sure that is."""

from typing import Annotated, Literal

from msgspec import Meta

from erq_export.contract.manifest import Count
from erq_export.contract.records import Record

Percent = Annotated[float, Meta(ge=0, le=100)]
Outputs = Literal["logits", "features"]  # of a model with a head, and of one without


class Share(Record, frozen=True, kw_only=True):
    """A share of images in per cent, and its 95 % confidence interval (Wilson's)."""

    value: Percent
    low: Percent
    high: Percent

    @property
    def told(self) -> str:
        """Value and interval as a table has them."""
        return f"{self.value:.2f} ({self.low:.1f} … {self.high:.1f})"


class Paired(Record, frozen=True, kw_only=True):
    """The same images with two models: `lost` are right with the first alone, `gained` with the second alone; p of McNemar's
    exact test that one is as likely as the other."""

    lost: Count
    gained: Count
    p: Annotated[float, Meta(ge=0, le=1)]


class Judged(Record, frozen=True, kw_only=True):
    """One quantized runner beside the float model.

    top1, top5, paired: where images have labels;  agreement: images in the float model's class, where there are classes;
    error: ‖ŷ − y‖/‖y‖ of the outputs;  cosine: of ŷ and y, mean over the images.
    """

    top1: Share | None = None
    top5: Share | None = None
    agreement: Share | None = None
    paired: Paired | None = None
    error: float
    cosine: Annotated[float, Meta(ge=-1, le=1)]


class ClassDrop(Record, frozen=True, kw_only=True):
    """One class: its index, its images, and how many of them are right in float and as the reference."""

    label: Count
    n_images: Count
    float_right: Count
    reference_right: Count


class Accuracy(Record, frozen=True, kw_only=True):
    """n_images were looked at, the outputs of n_compared of them, evenly spread, compared number by number.

    graphs: by target, one of each kind;  as_reference: images that a graph puts in the reference's class;  worst: the classes
    that lose most, ten at most;  published_top1: what the float model is known to reach, in per cent.
    """

    n_images: Count
    n_compared: Count
    outputs: Outputs
    float_top1: Share | None = None
    float_top5: Share | None = None
    reference: Judged
    graphs: dict[str, Judged]
    as_reference: dict[str, Share]
    worst: tuple[ClassDrop, ...] = ()
    published_top1: Percent | None = None
