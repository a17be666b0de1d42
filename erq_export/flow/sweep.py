"""A sweep: many jobs over one store, and what was measured of each of them, calibration by calibration."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from erq_export.contract.bundle import Bundle
from erq_export.data.calibration_set import CalibrationSet
from erq_export.data.held_out import HeldOut, Images, Prepared
from erq_export.flow.artifacts import Artifact
from erq_export.flow.begin import NOTHING_OWN, Own, begin
from erq_export.flow.choose import settled
from erq_export.flow.compare import seeds
from erq_export.flow.job import Job
from erq_export.flow.stages import Stages
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT, Ui
from erq_export.flow.work import Work

Name = Mapping[str, str]  # what tells a job from the others, column by column
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """One job's integers at one calibration seed. `work` holds model and images; jobs that agree in them share it."""

    job: Job
    work: Work
    data: CalibrationSet
    artifact: Artifact

    @property
    def stages(self) -> Stages:
        return self.work.stages

    @cached_property
    def bundle(self) -> Bundle:
        """The artifact, read."""
        return self.artifact.read(Bundle.load)

    @property
    def held_out(self) -> HeldOut:
        """The job's labelled images. ValueError where it has none."""
        return self.work.labelled

    def not_calibrated_on(self, n: int) -> Prepared:
        """n of the other images of the calibration's source, evenly spread over them, without labels: to judge by."""
        pixels = self.work.calibration.others(self.work.model.identity.preprocess, self.data.names, n=n)
        if pixels is None:
            raise ValueError("all images were calibrated on")
        return Prepared(tensor=pixels, fingerprint=hashlib.sha256(pixels.numpy().tobytes()).hexdigest())

    def top1(self, images: Images) -> float:
        """Of the fake-quant reference, in per cent."""
        return self.work.reference_decisions(self.artifact, images).top1()

    def agreement(self, images: Images) -> float:
        """Share of images on which reference and float model decide alike, in per cent."""
        reference = self.work.reference_decisions(self.artifact, images)
        return self.work.float_decisions(images).agreement(reference)

    def logits_error(self, images: Images) -> float:
        """‖ŷ − y‖/‖y‖ over the logits: y of the float model, ŷ of the reference."""
        return self.stages.logits_error(self.artifact, self.work.model, images)

    def deployed_error(self, images: Images) -> float:
        """The layers' relative output error inside the reference, mean over the layers."""
        return self.stages.deployed_error(self.artifact, self.work.model, images)


def sweep(
    jobs: Sequence[tuple[Name, Job]],
    measure: Callable[[Calibrated], Found],
    *,
    store: Store,
    ui: Ui = SILENT,
    own: Own = NOTHING_OWN,
) -> Iterator[tuple[Name, list[Found]]]:
    """Each job's name, and what `measure` finds at each of its seeds, when it is there: a row of a table a job.

    What the stages make is kept by the store: a sweep that was stopped, or has a job more, does the rest. Jobs that agree
    in model, images, deployment and device are best put one behind the other: the model is then loaded once. `own` stands
    in the place of every job's model and images.
    ErqError of the first job that cannot be done, where it is met: check what can be checked before.
    """
    work: Work | None = None
    for name, job in jobs:
        with ui.stage(" ".join(name.values())):
            if work is None or _needs(work.job) != _needs(job):
                work = begin(job, ui, store, own)
            job, found = settled(replace(work, job=job)).job, []
            for seed in seeds(job):
                data = work.calibration_images(seed)
                artifact = work.stages.bundle(work.model, data, job.quantization)
                found.append(measure(Calibrated(job=job, work=work, data=data, artifact=artifact)))
        yield name, found


def _needs(job: Job) -> tuple[object, ...]:
    """What a `Work` is made for, besides the method."""
    return job.model, job.data, job.deploy, job.device
