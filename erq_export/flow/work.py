"""One piece of work: a job, its model and images, read once, and the stages over a store."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from erq_export.backends.ranks import Ranks
from erq_export.data.calibration_set import CalibrationSet
from erq_export.data.given import Calibration
from erq_export.data.held_out import HeldOut, Images
from erq_export.flow.artifacts import Artifact
from erq_export.flow.job import Job
from erq_export.flow.meter import Meter
from erq_export.flow.shards import Task, What, alone, shared
from erq_export.flow.stages import Stages
from erq_export.flow.ui import SILENT, Ui
from erq_export.models.loading import Loaded, n_classes
from erq_export.validate.metrics.decisions import Decisions, Progress, Spans, decide_in_spans


@dataclass(frozen=True)
class Course:
    """The stages of a run as they are shown and metered."""

    ui: Ui
    meter: Meter = field(default_factory=Meter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage that is shown, timed and metered; its cost is said when it ends well."""
        with self.ui.stage(name), self.meter.stage(name):
            yield
        cost = self.meter.stages[-1]
        self.ui.note(f"{name}: {cost.wall_s:.1f} s, peak memory {cost.peak_mib:.0f} MiB")


@dataclass(frozen=True, kw_only=True)
class Work:
    """`model` is the float model, never changed; `calibration` gives images to calibrate on, accuracy is measured on
    `held_out`, where there are such images."""

    job: Job
    stages: Stages
    model: Loaded
    calibration: Calibration
    held_out: Images | None
    course: Course
    portable: bool = True  # another process can read the same model and images
    ranks: Ranks | None = None  # of torchrun
    _sets: dict[int, CalibrationSet] = field(default_factory=dict, repr=False)

    @property
    def labelled(self) -> HeldOut:
        """The held-out images of a source, where there must be some. ValueError otherwise."""
        if not isinstance(self.held_out, HeldOut):
            raise ValueError(f"the job of {self.job.model.name} has no labelled images")
        return self.held_out

    @property
    def headless(self) -> bool:
        """Has the model no classes, so that its outputs are features?"""
        return n_classes(self.model.model) == 0

    @property
    def quiet(self) -> "Work":
        """The same, with stages that tell nothing."""
        return replace(self, course=Course(SILENT), stages=replace(self.stages, ui=SILENT))

    @property
    def ui(self) -> Ui:
        """Who is told."""
        return self.course.ui

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A stage of the course."""
        return self.course.stage(name)

    def calibration_images(self, seed: int) -> CalibrationSet:
        """The job's number of images, drawn with a seed; decoded once."""
        if seed not in self._sets:
            preprocess = self.model.identity.preprocess
            self._sets[seed] = self.calibration.draw(preprocess, n=self.job.data.calib, seed=seed)
        return self._sets[seed]

    def float_decisions(self, images: Images) -> Decisions:
        """Of the float model."""
        return self._decisions("float", None, images)

    def reference_decisions(self, bundle: Artifact, images: Images) -> Decisions:
        """Of a bundle's fake-quant reference."""
        return self._decisions("reference", bundle, images)

    def graph_decisions(self, graph: Artifact, images: Images, runner: What = "onnxruntime") -> Decisions:
        """Of a graph in ONNX Runtime on the CPU, or in another runner; of an engine, whose files lie in place of the graph's."""
        return self._decisions(runner, graph, images)

    def _decisions(self, what: What, of: Artifact | None, images: Images) -> Decisions:
        """By this process, or shared out among those of its torchrun."""

        def decide(spans: Spans, told: Progress) -> Decisions:
            def of_files(folder: Path) -> Decisions:
                task = Task(what=what, folder=str(folder), headless=self.headless)
                do = alone(task, self.model, images, self.stages.device)
                do = do if self.ranks is None else shared(self.ranks, task, do)
                return decide_in_spans(images, do, spans=spans, progress=told)

            return of_files(Path()) if of is None else of.read(of_files)

        content = self.model.fingerprint if of is None else of.content
        return self.stages.decisions(what, content, images, decide, headless=self.headless)
