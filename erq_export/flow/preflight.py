"""What can be refused before any work: the machine, the output folder. Imports neither torch nor onnx."""

import tempfile
from collections.abc import Iterable, Sequence

from msgspec import structs

from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.errors import SpecError
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.records import plain_of
from erq_export.contract.spec import DeploySpec
from erq_export.contract.targets import TARGETS, deployable, named
from erq_export.data.sources import calibration_source, check_enough, validation_source
from erq_export.flow.detection.asked import check_begin, is_detector
from erq_export.flow.detection.sources import calibration_pictures, measured_pictures
from erq_export.flow.detection.units import units
from erq_export.flow.gates import ON_CLASSES, ON_IMAGES, ON_LABELS, asked_of
from erq_export.flow.job import Job


def check(job: Job, out: OutputFolder, *, overwrite: bool) -> None:
    """Everything that needs no model and no image. MachineError, OutputError, SpecError."""
    check_machine(job.deploy.targets, EngineSpec.of(job.deploy))
    check_solver(job)
    out.check(overwrite=overwrite, planned=out.planned(_folders(job)), job=plain_of(job))
    check_images(job)


def _folders(job: Job) -> tuple[str, ...]:
    """Where graphs will lie in the run's folder."""
    if is_detector(job.model.name):
        return units(job.model, job.deploy.targets)
    return deployable(job.deploy.targets)


def check_images(job: Job) -> None:
    """DataError where --data or --val hold no images, SpecError where none were named. The demo brings its own."""
    if is_detector(job.model.name):
        check_enough(calibration_pictures(job.model.name, job.data), job.data.calib)
        to_find = measured_pictures(job.model.name, job.data) is not None
        check_begin(job.model.name, job.evaluate, to_find=to_find)
        return
    if job.model.name != "demo" or job.data.data is not None:  # scikit-learn takes a second to load
        check_enough(calibration_source(job.model.name, job.data), job.data.calib)
    if job.data.val is not None or job.data.class_map is not None:
        validation_source(job.model.name, job.data)
    elif job.model.name != "demo":
        check_labels_needed(job)


def check_labels_needed(job: Job) -> None:
    """SpecError for what is measured on held-out images alone, where there are none: a gate that could never fail."""
    words = asked_of(job.evaluate, (*ON_LABELS, *ON_CLASSES, *ON_IMAGES)) + ["--val-images"] * (
        job.data.val_images != 0
    )
    if words:
        raise SpecError(
            f"{words[0]} without --val: there are no images to measure on",
            fix=f"--val DIR with one folder per class, or leave {words[0]} out",
        )


def buildable(deploy: DeploySpec, asked: Sequence[str]) -> tuple[str, ...]:
    """The targets among `asked`, or else among the run's own, that a graph can be written for from the run's bundle."""
    if not deployable(deploy.targets):
        raise SpecError(
            "the run was calibrated for reference alone: its grids need not fit any target",
            fix="calibrate again, for example with --to onnx",
        )
    if not (targets := deployable(asked or deploy.targets)):
        raise SpecError("nothing can be built for reference", fix=f"--to {' or --to '.join(deployable(TARGETS))}")
    return targets


def check_solver(job: Job) -> None:
    """MachineError where the rounding asked for needs a mixed-integer solver and none can be run here."""
    options = job.options
    if isinstance(options, ErqOptions) and options.rounding == "mipq":
        from erq_export.calibrate.published.solver import find_solver

        with tempfile.TemporaryDirectory(prefix="mipq-") as folder:
            find_solver(options.mipq_seconds, folder)


def check_machine(names: Iterable[str], engine: EngineSpec | None = None) -> None:
    """MachineError where a target's engine cannot be built here: no package, or no GPU for one that needs it.
    SpecError for what the package has not: a compute capability, engines for other GPUs or versions than its own."""
    from erq_export.backends.tensorrt import check, require

    for target in [named(name) for name in names]:
        if target.package is not None:
            package = require(target.package)
            if engine is not None:
                check(package, engine if target.ahead_of_time else structs.replace(engine, capability=()))
