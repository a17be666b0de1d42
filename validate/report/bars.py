"""A histogram as a few lines of SVG: bars in the page's colours, as many as there are codes or groups of codes."""

from erq_export.contract.histograms import Histogram

HEIGHT = 40
BAR, GAP = 0.86, 0.07  # of the width that a code has


def bars(histogram: Histogram, label: str) -> str:
    """An `svg` element that fills the width it is given; the highest bar fills the height. label: plain words without markup."""
    top = max(histogram.counts) or 1
    steps = []
    for i, count in enumerate(histogram.counts):
        if count:
            height = max(HEIGHT * count / top, 0.5)  # a code that occurs can be seen
            steps.append(f"M{i + GAP:g} {HEIGHT}v{-height:.3g}h{BAR:g}v{height:.3g}z")
    n = len(histogram.counts)
    return (
        f'<svg class="bars" viewBox="0 0 {n} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<path d="{"".join(steps)}"/></svg>'
    )
