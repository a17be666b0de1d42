"""Which device torch runs on."""

import torch

from erq_export.contract.errors import MachineError


def device_named(name: str) -> torch.device:
    """auto: the GPU where there is one. MachineError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise MachineError(f"--device {name}: torch knows no such device", fix="--device cpu, or cuda") from e
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs", fix="--device cpu")
    return device
