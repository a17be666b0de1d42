"""The processes that `torchrun` started for one command: the first has the say, the others are asked for their share.

They talk over gloo, on a GPU as on the CPU: what a runner hands out lies on the CPU already, and nobody waits for hours in a GPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from erq_export.contract.errors import MachineError

PATIENCE = timedelta(days=7)  # the others wait while the first calibrates


@dataclass(frozen=True)
class Ranks:
    """rank: this process's number, 0 for the first;  size: how many there are."""

    rank: int
    size: int

    def tell(self, text: str) -> None:
        """The first process says something that every other one hears."""
        with _met():
            dist.broadcast_object_list([text], src=0)

    def hear(self) -> str:
        """Wait for what the first process says."""
        box: list[Any] = [None]
        with _met():
            dist.broadcast_object_list(box, src=0)
        return str(box[0])

    def gather(self, own: Any) -> list[Any]:
        """Everybody's, in the order of their numbers, for the first process; an empty list for the others."""
        every: list[Any] = [None] * self.size if self.rank == 0 else []
        with _met():
            dist.gather_object(own, every or None, dst=0)
        return every


@contextmanager
def together(device: torch.device) -> Iterator[Ranks | None]:
    """The processes of this command, met and parted; None where there is but one. Each takes the GPU of its place on its machine.

    MachineError where they do not meet, and later where one of them is lost.
    """
    if not dist.is_torchelastic_launched() or os.environ.get("WORLD_SIZE") == "1":
        yield None
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _met():
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(rank=dist.get_rank(), size=dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _met() -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:
        raise MachineError(
            f"a process of this torchrun is lost: {str(e)[:200]}", fix="look at the others' messages, and start again"
        ) from e
