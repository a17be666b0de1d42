"""Everything that is measured of a detector's run: parity of its parts, average precision of every way to run it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from erq_export.contract.detection import Averages, Change, Detection, Judged, PartParity
from erq_export.contract.spec import EvaluateSpec
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection import found as finding
from erq_export.flow.detection.examples import examples
from erq_export.flow.detection.parity import parities
from erq_export.flow.detection.sources import spread
from erq_export.flow.detection.units import WHOLE, split
from erq_export.flow.detection.work import DetectorWork
from erq_export.flow.engines import MODEL_ENGINE, runs_here
from erq_export.flow.measure import Made
from erq_export.models.detectors.architecture import Size
from erq_export.validate.metrics.average_precision import AveragePrecision, Found, average_precision
from erq_export.validate.metrics.likeness import likeness
from erq_export.validate.metrics.resampled import Matched, gain, matched

Kind = Literal["box", "mask"]
ALIKE = 20  # pictures on which detections are compared one by one
KINDS: tuple[Kind, ...] = ("box", "mask")


def measure(work: DetectorWork, made: Made) -> tuple[dict[str, PartParity], Detection | None]:
    """Parity by TARGET/PART; what is found, where there is something to find."""
    with work.stage("parity"):
        parity = parities(made, work.calibration_images(work.job.data.seed).framed[0], work.ui)
    if work.measured_on is None:
        return parity, None
    with work.stage("average precision"):
        return parity, detection(work, made)


def detection(work: DetectorWork, made: Made) -> Detection:
    """The float detector, the reference, whole graphs in ONNX Runtime, and the engines that run here, on the same pictures."""
    truth = work.measured_on
    if truth is None:
        raise ValueError("the job has nothing to find")
    what = truth.truth(work.pictures)
    exact, reference = finding.of_float(work), finding.of_reference(work, made.bundle)
    graphs = deployed(work, made)
    on = Counter(work.framing.canvas_for(truth.size(i)) for i in work.pictures)
    few = [work.pictures[i] for i in spread(len(work.pictures), ALIKE)]
    ids = [truth.id(i) for i in few]
    base = {kind: matched(what, exact, kind) for kind in KINDS}
    return Detection(
        n_images=len(work.pictures),
        n_given=work.n_given,
        canvases=work.canvases,
        n_on=tuple(on[canvas] for canvas in work.canvases),
        exact=_judged(what, exact, None),
        reference=_judged(what, reference, base),
        graphs={name: _judged(what, found, base) for name, found in graphs.items()},
        as_reference={name: likeness(ids, reference, found) for name, found in graphs.items()},
        trembling=likeness(ids, reference, finding.of_trembling(work, made.bundle, few)) if graphs else None,
        examples=examples(work, exact, reference),
    )


def deployed(work: DetectorWork, made: Made) -> dict[str, list[Found]]:
    """What is found by all that was made and runs on this machine, by the name of what runs it."""
    found, whole = dict[str, list[Found]](), dict[Size, Artifact]()
    for unit, graph in made.graphs.items():
        kind, canvas = split(unit.partition("/")[2])
        if kind == WHOLE:
            whole[canvas or work.canvases[0]] = graph
    if whole:
        found["onnx in ONNX Runtime"] = finding.of_graphs(work, whole)
    targets = dict.fromkeys(unit.partition("/")[0] for unit in made.engines)
    for target in targets:
        engines = {unit.partition("/")[2]: one for unit, one in made.engines.items() if unit.startswith(f"{target}/")}
        if all(one.read(lambda folder: runs_here(folder / MODEL_ENGINE)) for one in engines.values()):
            found[engines_of(target)] = finding.of_engines(work, target, engines)
    return found


def engines_of(target: str) -> str:
    """The name of a target's engines among what finds."""
    return f"{target} engines"


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
