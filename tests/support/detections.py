"""What the report of a detector has beside that of a classifier, no field empty."""

from msgspec import structs

from erq_export.contract.detection import Averages, Change, Detection, Example, Judged, Likeness, PartParity
from erq_export.contract.followed import CODES, Followed, Gap, Ties
from erq_export.contract.parity import ParityReport
from erq_export.contract.report import PartReport, Report

JPEG = "/9j/4A=="


def part_parity(whole: ParityReport) -> PartParity:
    """The layers of a classifier's parity as those of a part."""
    return PartParity(
        n=1,
        weights=whole.weights,
        layers=whole.layers,
        between=whole.between,
        executed=whole.executed,
        outputs={"logits": 1e-3},
    )


def detection() -> Detection:
    averages = Averages(ap=50.0, ap50=70.5, ap75=55.25, small=30.0, medium=50.0, large=60.0)
    change = Change(value=-1.5, low=-2.5, high=-0.5)
    exact = Judged(box=averages, mask=averages)
    judged = structs.replace(exact, box_change=change, mask_change=change)
    return Detection(
        n_images=9,
        n_given=10,
        canvases=((192, 256), (256, 192)),
        n_on=(5, 4),
        exact=exact,
        reference=judged,
        graphs={"onnx in ONNX Runtime": judged},
        as_reference={"onnx in ONNX Runtime": Likeness(n=20, found=19, n_pictures=9, alike=8)},
        trembling={"onnx in ONNX Runtime": Likeness(n=20, found=18, n_pictures=9, alike=7)},
        examples=(Example(name="000000.png", exact=JPEG, reference=JPEG),),
    )


def followed() -> Followed:
    kinds = (CODES, "anchors", "proposals", "levels", "classes", "threshold", "detections")
    return Followed(
        n_images=9,
        n_found=20,
        ties={kind: Ties(n=100, other=i + 1, furthest=0.25) for i, kind in enumerate(kinds)},
        values={kind: Gap(largest=1e-6, limit=1e-5) for kind in ("boxes", "labels", "scores", "masks")},
        astray=("99 anchors where the reference has 100",),
    )


def of_detector(report: Report) -> Report:
    """The report with parts in the place of one graph, and what was found."""
    (name, target), *_ = report.targets.items()
    if target.parity is None:
        raise ValueError("the report has no parity")
    part = PartReport(bytes=600, claims=target.claims, parity=part_parity(target.parity), engine=target.engine)
    whole = PartReport(bytes=900, claims=target.claims, followed=followed())
    targets = {name: structs.replace(target, parts={"body": part, "detector": whole})}
    return structs.replace(report, targets=targets, detection=detection())
