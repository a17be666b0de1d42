"""What can be refused before any work: the machine, the output folder. Imports neither torch nor onnx."""

from collections.abc import Iterable, Sequence

from erq_export.artifacts import OutputFolder
from erq_export.targets import named


def check(targets: Iterable[str], capabilities: Sequence[str], out: OutputFolder, *, overwrite: bool) -> None:
    """Everything that needs no model and no image. MachineError, OutputError, SpecError."""
    check_machine(targets, capabilities)
    out.check(overwrite=overwrite)


def check_machine(names: Iterable[str], capabilities: Sequence[str] = ()) -> None:
    """MachineError where a target's engine cannot be built here: no package, or no GPU for one that needs it.
    SpecError for a compute capability that the package does not build for."""
    from erq_export.exporters.tensorrt import require, targets

    for target in [named(name) for name in names]:
        if target.package is not None:
            package = require(target.package)
            targets(package, capabilities if target.ahead_of_time else ())
