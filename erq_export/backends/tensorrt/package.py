"""Which of the two packages is here, and what it has.

A package that knows compute capabilities compiles ahead of time, without a GPU, for the ones that are named
(TensorRT-RTX); one that does not times kernels on the GPU it builds for (TensorRT).
"""

import importlib
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, TypeAlias

from erq_export.backends.cuda_driver import cuda_device_count
from erq_export.contract.errors import MachineError, SpecError

Package: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]

_CAPABILITY = re.compile(r"SM(\d+)(\d)")
_ELSEWHERE = (
    "--to tensorrt-rtx needs no GPU; from its output the GPU machine builds later: erq-export build OUT --to tensorrt"
)


def available(package: str) -> str | None:
    """The package's version, or None where it cannot be imported."""
    try:
        return str(importlib.import_module(package).__version__)
    except (ImportError, OSError):
        return None


def imported(package: str) -> ModuleType:
    """The package. MachineError where it cannot be imported."""
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:
        if package == "tensorrt":
            fix = f"install tensorrt from NVIDIA's own package index; {_ELSEWHERE}"
        else:
            fix = "pip install 'erq-export[tensorrt-rtx]'"
        raise MachineError(f"{package} cannot be imported: {error}", fix=fix) from error


def require(package: str) -> ModuleType:
    """The imported package. MachineError where it, or the GPU that it builds on, is missing: asked before any work."""
    trt = imported(package)
    if package == "tensorrt" and cuda_device_count() == 0:
        raise MachineError("tensorrt builds on the GPU it builds for, and this machine has none", fix=_ELSEWHERE)
    return trt


def named(trt: ModuleType) -> str:
    """Name and version, as messages have it."""
    return f"{trt.__name__} {trt.__version__}"


def shape(dims: Any) -> tuple[int, ...]:
    """The package's own dims as plain numbers."""
    return tuple(int(dim) for dim in dims)


def ahead_of_time(trt: ModuleType) -> bool:
    """Does it compile for GPUs that are not here?"""
    return hasattr(trt, "ComputeCapability")


def targets(trt: ModuleType, names: Sequence[str]) -> list[Any]:
    """The package's own values for "8.9" and its like, each once. SpecError naming what it builds for otherwise."""
    if not names:
        return []
    if not hasattr(trt, "ComputeCapability"):
        raise SpecError(
            f"{named(trt)} builds for the GPU it runs on, not for compute capability {', '.join(names)}",
            fix="leave --capability out, or --to tensorrt-rtx",
        )
    members = trt.ComputeCapability.__members__.items()
    known = {f"{match[1]}.{match[2]}": member for name, member in members if (match := _CAPABILITY.fullmatch(name))}
    if unknown := [name for name in names if name not in known]:
        raise SpecError(
            f"compute capability {', '.join(unknown)}: {named(trt)} builds for {', '.join(known)}",
            fix="nvidia-smi --query-gpu=compute_cap --format=csv prints your GPU's; --to tensorrt serves the others",
        )
    return [known[name] for name in dict.fromkeys(names)]
