"""One piece of work on a detector: its job, model and pictures, read and looked at before anything is computed."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch

from erq_export.backends.device import device_named
from erq_export.calibrate.framed_set import FramedSet, framed_set
from erq_export.contract.errors import DataError
from erq_export.contract.memory import require_memory
from erq_export.contract.spec import DataSpec
from erq_export.data.coco import COCO_NAMES, CocoSplit
from erq_export.data.images import ImageSource
from erq_export.data.scenes import NAMES
from erq_export.flow.detection.asked import OWN, check_begin
from erq_export.flow.detection.sources import Truth, calibration_pictures, measured_pictures, spread
from erq_export.flow.job import Job
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.flow.work import Course
from erq_export.models.detectors.architecture import Architecture, Size, architecture_of
from erq_export.models.detectors.framing import Framed, Framing
from erq_export.models.detectors.loading import canvas_of, framing_of, load_asked
from erq_export.models.loading import Loaded


@dataclass(frozen=True, kw_only=True)
class DetectorWork:
    """`model` is the float detector, never changed; `measured_on` has things to find, and `pictures` are the positions that
    are measured: of `n_given` those that fit on the canvas."""

    job: Job
    course: Course
    stages: Stages
    model: Loaded
    calibration: ImageSource
    measured_on: Truth | None
    pictures: tuple[int, ...] = ()
    n_given: int = 0
    _sets: dict[int, FramedSet] = field(default_factory=dict, repr=False)

    @property
    def canvases(self) -> tuple[Size, ...]:
        """What pictures are measured on; the first is the model's own, which is calibrated on."""
        own = canvas_of(self.model.identity)
        return (own, *(canvas for canvas in self.job.model.canvases if canvas != own))

    @property
    def framing(self) -> Framing:
        """Of measured pictures."""
        return framing_of(self.model.identity.timm_name, *self.canvases)

    def calibration_images(self, seed: int) -> FramedSet:
        """The job's number of pictures that lie on the first canvas, drawn with a seed."""
        if seed not in self._sets:
            framing = framing_of(self.model.identity.timm_name, self.canvases[0])
            self._sets[seed] = framed_set(self.calibration, framing, n=self.job.data.calib, seed=seed)
        return self._sets[seed]

    @property
    def ui(self) -> Ui:
        """Who is told."""
        return self.course.ui

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A stage of the course."""
        return self.course.stage(name)


def begin(job: Job, ui: Ui, store: Store, *, calibrated: DataSpec | None = None) -> DetectorWork:
    """The job's model and pictures; calibrated: what its run calibrated from, where that is not what the job says. SpecError,
    DataError or MachineError for what cannot be used."""
    calibration = calibration_pictures(job.model.name, calibrated or job.data)
    truth = measured_pictures(job.model.name, job.data)
    check_begin(job.model.name, job.evaluate, to_find=truth is not None)
    device, course = device_named(job.device), Course(ui)
    with course.stage("load"):
        model = load_asked(job.model, seed=job.data.seed)
        _check_categories(job.model.name, truth)
        given = [] if truth is None else spread(len(truth), job.data.val_images)
        work = DetectorWork(
            job=job,
            course=course,
            stages=Stages(store=store, ui=ui, device=device),
            model=model,
            calibration=calibration,
            measured_on=truth,
            n_given=len(given),
        )
        if truth is not None:
            work = replace(work, pictures=fitting(truth, given, work.framing))
        require_memory(
            job.data.calib * picture_bytes(architecture_of(job.model.name), canvas_of(model.identity)),
            f"{job.data.calib} calibration pictures and their maps",
            fix="fewer: --calib N, or a smaller --canvas",
        )
        job.method.bits.check(site.path for stage in model.stages for site in stage.sites)
        work.calibration_images(job.data.seed)
    return work


def fitting(truth: Truth, given: Sequence[int], framing: Framing) -> tuple[int, ...]:
    """The positions of pictures that lie on the canvas. DataError where none of them has a thing on it."""
    fit = tuple(i for i in given if framing.fits(truth.size(i)))
    if all(thing["iscrowd"] for thing in truth.truth(fit)["annotations"]):
        raise DataError(
            f"no picture with a thing on it fits on the canvas of {' or '.join(f'{h}×{w}' for h, w in framing.canvases)}",
            fix="--canvas with other sides; more pictures: --val-images 0",
        )
    return fit


@torch.no_grad()
def check_something_is_found(work: DetectorWork) -> None:
    """DataError where the float detector finds nothing on any calibration picture: mask heads would get nothing."""
    detector = copy.deepcopy(work.model.model).to(work.stages.device)
    for framed in work.calibration_images(work.job.data.seed).framed:
        pixels = framed.pixels.to(work.stages.device)
        if len(detector(Framed(pixels=pixels, size=framed.size, given=framed.given)).boxes):
            return
    raise DataError(
        f"{work.model.identity.name} finds nothing on the calibration pictures, so its mask head would get nothing",
        fix="other pictures (--data, --seed), more of them (--calib), or the weights that belong to the detector",
    )


def picture_bytes(architecture: Architecture, canvas: Size) -> int:
    """Of one picture on its canvas, of the hidden state of Swin before and behind a stage, and of the pyramid's maps."""
    pixels, tokens = canvas[0] * canvas[1], canvas[0] * canvas[1] // 16
    maps = sum(tokens >> 2 * level for level in range(5)) * architecture.channels
    return 4 * (3 * pixels + 2 * tokens * architecture.dim + maps)


def _check_categories(name: str, truth: Truth | None) -> None:
    if not isinstance(truth, CocoSplit):
        return
    if name in OWN:
        truth.check_categories(NAMES)
    else:
        truth.check_categories(COCO_NAMES)
