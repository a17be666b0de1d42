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
    if not (match := FORM.fullmatch(name)):
        raise unknown("--device", shown(name[:100]), KNOWN)
    if name != "cpu":
        n, index = torch.cuda.device_count(), int(match[2] or 0)  # not torch.device(name).index: cuda:999 is -25 there
        if index >= n:
            gpus = f"{n or 'no'} GPU{'s' * (n != 1)}"
            raise MachineError(f"--device {name}: this machine has {gpus} for torch", fix="--device cpu")
    return torch.device(name)
