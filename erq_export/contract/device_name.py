"""The words that name a device, looked at without torch."""

import re

from erq_export.contract.inputs import shown
from erq_export.contract.registry import unknown

KNOWN = ("auto", "cpu", "cuda", "cuda:0", "cuda:1")  # what a wrong name may have meant
FORM = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?")


def check_device_name(name: str) -> None:
    """SpecError for a word that is not auto, cpu, cuda or cuda:N, also for other devices that torch knows.

    Calibration needs float64, which not all of them have. Whether the GPU is there is another question.
    """
    if not FORM.fullmatch(name):
        raise unknown("--device", shown(name[:100]), KNOWN)


def gpu_index(name: str) -> int:
    """N of cuda:N, 0 of cuda. Not torch.device(name).index: cuda:999 is -25 there."""
    return int(name.partition(":")[2] or 0)
