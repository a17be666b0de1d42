"""What can be refused before any work: the machine, the output folder. Imports neither torch nor onnx."""

from collections.abc import Iterable

from erq_export.artifacts import OutputFolder
from erq_export.targets import named


def check(targets: Iterable[str], out: OutputFolder, *, overwrite: bool) -> None:
    """Everything that needs no model and no image. MachineError, OutputError, SpecError."""
    check_machine(targets)
    out.check(overwrite=overwrite)


def check_machine(targets: Iterable[str]) -> None:
    """MachineError where a target's engine cannot be built here: no package, or no GPU for one that needs it."""
    from erq_export.exporters.tensorrt import require

    for target in [named(name) for name in targets]:
        if target.package is not None:
            require(target.package)
