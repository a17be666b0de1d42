"""Is the float model itself as good on these images as it is known to be: before anything is said of its integers."""

from erq_export.contract.accuracy import Accuracy

FAR = 5.0  # points of top-1 below the published figure; other images of the same kind cost less


def doubt(found: Accuracy) -> str | None:
    """A sentence where the float model's top-1 is far below what was published, and the sample is not to blame: the upper end of
    its 95 % interval is more than 5 points below. None otherwise, and where nothing is known."""
    top1, published = found.float_top1, found.published_top1
    if top1 is None or published is None or top1.high >= published - FAR:
        return None
    return (
        f"The float model itself has {top1.value:.2f} % top-1 here ({top1.low:.1f} to {top1.high:.1f}), {published:.2f} % is "
        "known of it, so nothing below says much of its integers. The usual causes: other preprocessing than it was trained with "
        "(--preprocess), class folders in another order than its outputs (--class-map), images of another kind."
    )
