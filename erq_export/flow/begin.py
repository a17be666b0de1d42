"""The beginning of every run: its model and images are read and looked at, before anything is computed."""

from dataclasses import dataclass, replace

import torch

from erq_export.backends.device import device_named
from erq_export.backends.machine import cores
from erq_export.backends.ranks import Ranks
from erq_export.calibrate.budget import budget
from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.published.mipq_time import mipq_estimate, weight_shapes
from erq_export.data.given import Calibration, FromSource
from erq_export.data.held_out import HeldOut, Images, Prepared
from erq_export.data.images import ImageSource
from erq_export.data.sources import calibration_source, check_class_folders, validation_source
from erq_export.flow.gates import check_measurable
from erq_export.flow.job import Job
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.flow.work import Course, Work
from erq_export.models.limits import check_attention
from erq_export.models.loading import Loaded, load, n_classes

MOST_LOADERS = 8


@dataclass(frozen=True, kw_only=True)
class Own:
    """A Python caller's own model and images, in the place of those that the job names."""

    model: Loaded | None = None
    calibration: Calibration | None = None
    held_out: Images | None = None


NOTHING_OWN = Own()


def begin(job: Job, ui: Ui, store: Store, own: Own = NOTHING_OWN, *, ranks: Ranks | None = None) -> Work:
    """The job's images and model, looked at before anything is computed; `own` are the caller's in their place; `ranks`
    share in deciding on held-out images."""
    calibration = own.calibration
    if calibration is None:
        calibration = FromSource(calibration_source(job.model.name, job.data))
    if isinstance(calibration, FromSource):
        calibration.check(job.data.calib)
    val = None if own.held_out is not None else validation_source(job.model.name, job.data)
    device, course = device_named(job.device), Course(ui)
    with course.stage("load"):
        model = own.model or load(job.model, seed=job.data.seed)
        if job.deploy.precision != "fp16":
            check_attention(model.family.attention(model.model), job.deploy.targets, job.deploy.precision)
        for bits in (job.method.bits, *job.evaluate.compare):
            bits.check(site.path for stage in model.stages for site in stage.sites)
        headless = n_classes(model.model) == 0
        if headless and val is not None:
            val = validation_source(job.model.name, job.data, headless=True)
        if val is not None and val.labels is not None and job.data.val is not None and job.data.class_map is None:
            check_class_folders(val, n_classes(model.model))
        seen = own.held_out or held_out(job, model, val, workers=loaders(device, job.data.workers))
        if headless and isinstance(seen, Prepared):
            seen = replace(seen, labels=None)
        if seen is not None:
            check_measurable(job.evaluate, labelled=seen.labels is not None and not headless, headless=headless)
        work = Work(
            job=job,
            course=course,
            stages=Stages(store=store, ui=ui, device=device),
            model=model,
            calibration=calibration,
            held_out=seen,
            portable=own is NOTHING_OWN,
            ranks=ranks,
        )
        work.calibration_images(job.data.seed)
    return work


def check_cost(work: Work) -> None:
    """Say what the calibration will take. MachineError where the memory is not there, SpecError where mipq takes too long."""
    options, held = work.job.options, budget(work.model, work.job.data.calib, work.job.options)
    work.ui.note(held.says())
    if work.stages.device.type == "cpu":
        held.check()
    if isinstance(options, ErqOptions) and options.rounding == "mipq":
        shapes = weight_shapes(work.model)
        estimate = mipq_estimate(shapes, columns=options.mipq_columns, seconds=options.mipq_seconds)
        work.ui.note(estimate.says())
        estimate.check(options.mipq_limit, option="-O mipq_limit")


def held_out(job: Job, model: Loaded, val: ImageSource | None, *, workers: int) -> Images | None:
    """What is measured on, where there are held-out images; so many processes decode them."""
    if val is None:
        return None
    limit, preprocess = job.data.val_images or None, model.identity.preprocess
    return HeldOut(source=val, preprocess=preprocess, limit=limit, workers=workers)


def loaders(device: torch.device, asked: int | None) -> int:
    """Processes that decode: those asked for, else beside a GPU as many as there are cores, at most 8; on a CPU none, where the
    model has all cores to itself."""
    return asked if asked is not None else min(MOST_LOADERS, len(cores())) if device.type == "cuda" else 0
