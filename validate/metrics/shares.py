"""How sure a share of images is, and whether two models differ on the same images."""

from scipy.stats import binomtest
from torch import Tensor

from erq_export.contract.accuracy import Paired, Share

LEVEL = 0.95


def share(hits: Tensor) -> Share:
    """hits (n,) bool, n ≥ 1. Wilson's interval: it holds near 0 and 100 %, where mean ± deviation leaves the scale."""
    n, k = len(hits), int(hits.sum())
    interval = binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    return Share(value=100 * k / n, low=100 * float(interval.low), high=100 * float(interval.high))


def paired(first: Tensor, second: Tensor) -> Paired:
    """Both (n,) bool, right or not on the same images. McNemar's exact test: of the images that one alone gets right, either
    has a half if the models are equally good."""
    lost, gained = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return Paired(lost=lost, gained=gained, p=min(p, 1.0))
