"""Everything that is measured of a detector's run: parity of its parts, average precision of every way to run it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from erq_export.contract.detection import Averages, Change, Detection, Judged, PartParity
from erq_export.contract.followed import Followed
from erq_export.contract.spec import EvaluateSpec
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection import found as finding
from erq_export.flow.detection.examples import examples
from erq_export.flow.detection.followed import followed
from erq_export.flow.detection.parity import parities
from erq_export.flow.detection.ran import Way, n_on, ran
from erq_export.flow.detection.sources import FEW, Truth, spread
from erq_export.flow.detection.work import DetectorWork
from erq_export.flow.measure import Made
from erq_export.validate.metrics.average_precision import AveragePrecision, Found, average_precision
from erq_export.validate.metrics.likeness import likeness
from erq_export.validate.metrics.resampled import Matched, gain, matched

Kind = Literal["box", "mask"]
KINDS: tuple[Kind, ...] = ("box", "mask")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Parity of parts, and of graphs of the whole, by TARGET/PART; what is found, where there is something to find; sentences on
    what was made and not run."""

    parity: dict[str, PartParity]
    followed: dict[str, Followed]
    detection: Detection | None
    not_run: list[str]


def measure(work: DetectorWork, made: Made) -> Outcome:
    """Compare the parts, and look for things with all that runs on this machine."""
    with work.stage("parity"):
        parity = parities(made, work.calibration_images(work.job.data.seed).framed[0], work.ui)
        whole = followed(work, made)
    with work.stage("average precision"):
        found = ran(work, made)
        detected = None if work.measured_on is None else detection(work, made.bundle, work.measured_on, found.ways)
    return Outcome(parity=parity, followed=whole, detection=detected, not_run=found.not_run)


def detection(work: DetectorWork, bundle: Artifact, truth: Truth, ways: Mapping[str, Way]) -> Detection:
    """The float detector, the reference, and all other ways by the name of what runs them, on the same pictures."""
    what = truth.truth(work.pictures)
    exact, reference = finding.of_float(work), finding.of_reference(work, bundle)
    looked_at = [work.pictures[i] for i in spread(len(work.pictures), FEW)]
    ids = [truth.id(i) for i in looked_at]
    base = {kind: matched(what, exact, kind) for kind in KINDS}
    shaken = {e: finding.of_trembling(work, bundle, looked_at, e) for e in sorted({way.e for way in ways.values()})}
    return Detection(
        n_images=len(work.pictures),
        n_given=work.n_given,
        canvases=work.canvases,
        n_on=n_on(work),
        exact=_judged(what, exact, None),
        reference=_judged(what, reference, base),
        graphs={name: _judged(what, way.found, base) for name, way in ways.items()},
        as_reference={name: likeness(ids, reference, way.found) for name, way in ways.items()},
        trembling={name: likeness(ids, reference, shaken[way.e]) for name, way in ways.items()},
        examples=examples(work, exact, reference),
    )


def _judged(what: Mapping[str, object], found: Sequence[Found], base: Mapping[Kind, Matched] | None) -> Judged:
    """Average precision, and its change beside the float detector's."""
    box, mask = (_averages(average_precision(what, found, kind)) for kind in KINDS)
    if base is None:
        return Judged(box=box, mask=mask)
    changes = {}
    for kind in KINDS:
        own = matched(what, found, kind)
        low, high = gain(own, base[kind])
        changes[f"{kind}_change"] = Change(value=own.ap() - base[kind].ap(), low=low, high=high)
    return Judged(box=box, mask=mask, **changes)


def _averages(found: AveragePrecision) -> Averages:
    return Averages(**{name: getattr(found, name) for name in Averages.__struct_fields__})


def broken(evaluate: EvaluateSpec, found: Detection | None) -> list[str]:
    """The bound on average precision, where one was asked for and does not hold."""
    if evaluate.max_drop is None or found is None:
        return []
    judged = {"reference": found.reference} | found.graphs
    return [
        f"{name}: {kind} AP drops by {drop:.2f} points, {evaluate.max_drop:g} are allowed"
        for name, one in judged.items()
        for kind in KINDS
        if (drop := getattr(found.exact, kind).ap - getattr(one, kind).ap) > evaluate.max_drop
    ]
