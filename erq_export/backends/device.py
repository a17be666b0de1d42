"""Which device `--device` names: the CPU or one of NVIDIA's GPUs, read strictly."""

import re

import torch

from erq_export.contract.errors import MachineError
from erq_export.contract.inputs import shown
from erq_export.contract.registry import unknown

KNOWN = ("auto", "cpu", "cuda", "cuda:0", "cuda:1")  # what a wrong name may have meant
FORM = re.compile(r"cpu|cuda(:(0|[1-9][0-9]{0,2}))?")


def device_named(name: str) -> torch.device:
    """auto: the GPU where there is one, else the CPU; cpu; cuda or cuda:N.

    SpecError for anything else, also for devices that torch knows: calibration needs float64, which not all of them have.
    MachineError for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not FORM.fullmatch(name):
        raise unknown("--device", shown(name[:100]), KNOWN)
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        n = torch.cuda.device_count()
        raise MachineError(
            f"--device {name}: this machine has {n or 'no'} GPU{'s' * (n != 1)} for torch", fix="--device cpu"
        )
    return device
