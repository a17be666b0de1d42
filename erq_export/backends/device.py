"""Which device `--device` names: the CPU or one of NVIDIA's GPUs, read strictly."""

import torch

from erq_export.contract.device_name import check_device_name, gpu_index
from erq_export.contract.engine import Gpu
from erq_export.contract.errors import MachineError


def device_named(name: str) -> torch.device:
    """auto: the GPU where there is one, else the CPU; cpu; cuda or cuda:N.

    SpecError for anything else, MachineError for a GPU that is not there.
    """
    check_device_name(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and gpu_index(name) >= (n := torch.cuda.device_count()):
        gpus = f"{n or 'no'} GPU{'s' * (n != 1)}"
        raise MachineError(f"--device {name}: this machine has {gpus} for torch", fix="--device cpu")
    return torch.device(name)


def gpu_here(device: torch.device | None = None) -> Gpu | None:
    """The GPU that torch uses here, or the one of a device; None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return Gpu(name=torch.cuda.get_device_name(device), capability=f"{major}.{minor}")
