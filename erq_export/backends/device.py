"""Which device `--device` names: the CPU or one of NVIDIA's GPUs, read strictly."""

import torch

from erq_export.contract.device_name import check_device_name, gpu_index
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
