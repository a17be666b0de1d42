"""What this machine can do: which packages are there, which targets build here, where calibration would run."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from erq_export.contract.errors import ErqError
from erq_export.contract.targets import TARGETS, named
from erq_export.flow.preflight import check_machine

PACKAGES = ("torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "pulp", "scikit-learn")


def findings() -> Iterator[str]:
    """Lines of text."""
    for name in PACKAGES:
        try:
            yield f"{name:16s} {version(name)}"
        except PackageNotFoundError:
            yield f"{name:16s} not installed"
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"{'GPU':16s} {', '.join(gpus) or 'none: calibration runs on the CPU'}"
    for name in TARGETS:
        try:
            check_machine([name])
            yield f"--to {name:11s} {'is simulated' if named(name).simulated else 'builds'} here"
        except ErqError as e:
            yield f"--to {name:11s} not here: {e.problem}; {e.fix}"
