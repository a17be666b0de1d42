"""A command in a process of torchrun that is not the first: it helps, and says nothing."""

import os

from erq_export.flow.detection.asked import is_detector
from erq_export.flow.job import Job


def helps(job: Job, *, alone: bool = False) -> bool:
    """In such a process: do one's share until the first has ended, well or not, which is its to say; then True. alone: the first
    asks nobody."""
    if is_detector(job.model.name):
        return False  # which refuses torchrun
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0":
        return False
    if not alone:
        from erq_export.flow.helping import help_first

        help_first(job)
    return True
